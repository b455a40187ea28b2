-- writer: scheduler. A person stopped a host of a work, whether or not an executor has made its task yet.
CREATE TABLE host_stops (
  work_id uuid NOT NULL,
  host text NOT NULL,
  person text NOT NULL,
  reason text NOT NULL,
  at timestamptz NOT NULL,
  PRIMARY KEY (work_id, host)
);

-- writer: scheduler. A person stopped a host of a work, whether or not an executor has made its task yet.
CREATE TABLE host_stops (
  work_id BLOB NOT NULL,
  host TEXT NOT NULL,
  person TEXT NOT NULL,
  reason TEXT NOT NULL,
  at TEXT NOT NULL,
  PRIMARY KEY (work_id, host)
) STRICT;

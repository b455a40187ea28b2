-- writer: scheduler. A person stopped a host in mid-run; its executor fences the task.
CREATE TABLE task_stops (
  task_id uuid PRIMARY KEY,
  work_id uuid NOT NULL,
  person text NOT NULL,
  reason text NOT NULL,
  at timestamptz NOT NULL
);
CREATE INDEX task_stops_by_work ON task_stops (work_id);
-- writer: scheduler (sets it with a rollback), api (a person sets or releases it). What asks for releases by itself (hooks,
-- promotions) is refused here while the row is there.
CREATE TABLE holds (
  project text NOT NULL,
  environment text NOT NULL,
  person text NOT NULL,
  reason text NOT NULL,
  at timestamptz NOT NULL,
  deployment_id uuid,
  PRIMARY KEY (project, environment)
);
-- writer: api; a rollback that says so adds a veto (scheduler). `kind` is veto (never this version) or pin (this version and no
-- other); `environment` is empty for all environments of the project.
CREATE TABLE marks (
  project text NOT NULL,
  environment text NOT NULL,
  kind text NOT NULL,
  version text NOT NULL,
  person text NOT NULL,
  reason text NOT NULL,
  at timestamptz NOT NULL,
  PRIMARY KEY (project, environment, kind, version)
);

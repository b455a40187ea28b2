-- writer: scheduler. A person stopped a host in mid-run; its executor fences the task.
CREATE TABLE task_stops (
  task_id BLOB PRIMARY KEY,
  work_id BLOB NOT NULL,
  person TEXT NOT NULL,
  reason TEXT NOT NULL,
  at TEXT NOT NULL
) STRICT;
CREATE INDEX task_stops_by_work ON task_stops (work_id);
-- writer: scheduler (sets it with a rollback), api (a person sets or releases it). What asks for releases by itself (hooks,
-- promotions) is refused here while the row is there.
CREATE TABLE holds (
  project TEXT NOT NULL,
  environment TEXT NOT NULL,
  person TEXT NOT NULL,
  reason TEXT NOT NULL,
  at TEXT NOT NULL,
  deployment_id BLOB,
  PRIMARY KEY (project, environment)
) STRICT;
-- writer: api; a rollback that says so adds a veto (scheduler). `kind` is veto (never this version) or pin (this version and no
-- other); `environment` is empty for all environments of the project.
CREATE TABLE marks (
  project TEXT NOT NULL,
  environment TEXT NOT NULL,
  kind TEXT NOT NULL,
  version TEXT NOT NULL,
  person TEXT NOT NULL,
  reason TEXT NOT NULL,
  at TEXT NOT NULL,
  PRIMARY KEY (project, environment, kind, version)
) STRICT;

-- When a deployment last started: what is newer than it in its environment, and who goes first in the queue because it has
-- run before. A copy of what stands in `doc`.
ALTER TABLE deployments ADD COLUMN started_at TEXT;
UPDATE deployments SET started_at = replace(json_extract(doc, '$.started_at'), 'Z', '+00:00')
  WHERE json_extract(doc, '$.started_at') IS NOT NULL;
CREATE INDEX deployments_started ON deployments (project, environment, started_at) WHERE started_at IS NOT NULL;
-- What a rollback that waits for the end of an abort was asked to do is read from its command.
CREATE INDEX commands_rollbacks ON commands (deployment_id) WHERE verb = 'rollback';

-- When a deployment last started: what is newer than it in its environment, and who goes first in the queue because it has
-- run before. A copy of what stands in `doc`.
ALTER TABLE deployments ADD COLUMN started_at timestamptz;
UPDATE deployments SET started_at = (doc->>'started_at')::timestamptz WHERE doc->>'started_at' IS NOT NULL;
CREATE INDEX deployments_started ON deployments (project, environment, started_at) WHERE started_at IS NOT NULL;
-- What a rollback that waits for the end of an abort was asked to do is read from its command.
CREATE INDEX commands_rollbacks ON commands (deployment_id) WHERE verb = 'rollback';

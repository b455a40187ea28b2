-- Indices for what is asked while years of history lie in the tables: each list by what it can be narrowed to, newest first; the queue of
-- an environment; the poll for results that were not applied; and the tasks that are open.
CREATE INDEX deployments_by_environment ON deployments (project, environment, created_at, id);
CREATE INDEX deployments_by_environment_state ON deployments (project, environment, state, created_at, id);
CREATE INDEX deployments_by_project_state ON deployments (project, state, created_at, id);
CREATE INDEX deployments_by_state ON deployments (state, created_at, id);
CREATE INDEX artifacts_by_time ON artifacts (project, created_at, id);
CREATE INDEX intake_by_project ON intake (project, received_at, delivery_id);
CREATE INDEX work_claims_changed ON work_claims (updated_at);
CREATE INDEX tasks_open ON tasks (state, host) WHERE state IN ('pending', 'offered', 'granted', 'unknown');

-- Least-privilege roles: one a service, each writes its own tables and nothing else (the writers are named in migrations/).
-- Run as the owner of the schema, after `windlass init`, and again after every upgrade; it may be run any number of times.
--
--   psql -v ON_ERROR_STOP=1 -d windlass -f ops/postgres/roles.sql
--   CREATE USER api_1 PASSWORD '…' IN ROLE windlass_api;      -- and so on, one login a service
--
-- A service whose role may not change the schema refuses to start while a migration is missing, and says so.
-- All of it is one transaction: services that run meanwhile are never without a right that they had.
-- `SELECT … FOR UPDATE` needs the right to update some column: where a service only locks rows of another's table, it has that
-- right on one column that carries no decision.

BEGIN;

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['windlass_api', 'windlass_scheduler', 'windlass_executor', 'windlass_notifier', 'windlass_auditor'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN', name);
    END IF;
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA public FROM %I', name);
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', name);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA public TO %I', name);
    -- Events, their queue and leases are everybody's, through the same functions.
    EXECUTE format('GRANT INSERT ON events TO %I', name);
    EXECUTE format('GRANT INSERT, UPDATE ON event_heads TO %I', name);
    EXECUTE format('GRANT INSERT, DELETE ON event_queue TO %I', name);
    EXECUTE format('GRANT INSERT, UPDATE, DELETE ON leases TO %I', name);
    EXECUTE format('GRANT INSERT, UPDATE, DELETE ON processes TO %I', name);
  END LOOP;
  -- Nobody creates anything.
  REVOKE CREATE ON SCHEMA public FROM PUBLIC;
END $$;

-- Hashes of tokens are the api's business, sealed values that of who opens them.
REVOKE SELECT ON tokens, enroll_tokens FROM windlass_scheduler, windlass_executor, windlass_notifier, windlass_auditor;
REVOKE SELECT ON idempotency FROM windlass_scheduler, windlass_executor, windlass_notifier, windlass_auditor;
REVOKE SELECT ON secrets FROM windlass_scheduler, windlass_auditor;
GRANT SELECT (scope, name) ON secrets TO windlass_scheduler;
-- Whether an approval's token still works when the approval is taken.
GRANT SELECT (id, person, scopes, project, expires_at, revoked_at) ON tokens TO windlass_scheduler;

GRANT INSERT, UPDATE, DELETE ON people, grants, tokens, catalog, catalog_revisions, secrets, artifacts, intake, commands, idempotency,
  enroll_tokens, agents, host_locks, control_keys, plugin_callbacks, sources, holds, marks TO windlass_api;
GRANT INSERT ON command_queue, notification_retries TO windlass_api;
-- Marks and holds wait for what is being started: behind the row of the environment's lock, which may have to be made.
GRANT INSERT, UPDATE (taken_at) ON locks TO windlass_api;
-- Diagnosis expires the claim of an executor that is gone.
GRANT UPDATE ON work_claims TO windlass_api;

GRANT INSERT, UPDATE, DELETE ON command_outcomes, releases, deployments, plans, approvals, locks, works, task_overrides, task_stops, host_stops,
  environment_state, bundles, bundle_members, verified, promotions, holds, marks TO windlass_scheduler;
GRANT DELETE ON command_queue TO windlass_scheduler;
GRANT INSERT ON work_claims TO windlass_scheduler;
GRANT UPDATE (updated_at) ON catalog TO windlass_scheduler;

GRANT INSERT, UPDATE, DELETE ON work_claims, tasks, agent_sessions, log_heads, log_chunks, ssh_hosts, plugin_calls TO windlass_executor;
-- Hosts reached by SSH are enrolled over the pinned connection.
GRANT INSERT, UPDATE ON agents TO windlass_executor;
GRANT UPDATE (trace) ON works TO windlass_executor;

GRANT INSERT, UPDATE, DELETE ON notifications, channel_rates TO windlass_notifier;
GRANT DELETE ON notification_retries TO windlass_notifier;

GRANT INSERT, UPDATE, DELETE ON audit_leaves, audit_checkpoints TO windlass_auditor;

COMMIT;

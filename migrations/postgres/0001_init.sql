-- The whole schema. Each table's header names its ONE writer; every service may read.
-- Kept in step with migrations/sqlite by a test that compares tables and columns.
-- Documents (`doc`, `spec`, `result`, `payload`) are JSON of a type in shared/domain; the columns beside them are what queries need.

-- writer: all (insert only; nothing updates or deletes). Outbox, history and audit source at once.
CREATE TABLE events (
  id uuid PRIMARY KEY,
  aggregate text NOT NULL,
  aggregate_id text NOT NULL,
  agg_seq bigint NOT NULL,
  type text NOT NULL,
  project text,
  environment text,
  severity text NOT NULL,
  actor text NOT NULL,
  at timestamptz NOT NULL,
  payload jsonb NOT NULL,
  trace text,
  UNIQUE (aggregate, aggregate_id, agg_seq)
);
-- writer: all, through store::events::append. The row lock makes agg_seq gapless and commit-ordered.
CREATE TABLE event_heads (
  aggregate text NOT NULL,
  aggregate_id text NOT NULL,
  next bigint NOT NULL,
  PRIMARY KEY (aggregate, aggregate_id)
);
-- writer: append inserts a row per consumer; a consumer deletes its own in the transaction that applies the effect.
CREATE TABLE event_queue (
  consumer text NOT NULL,
  event_id uuid NOT NULL,
  at timestamptz NOT NULL,
  PRIMARY KEY (consumer, event_id)
);
-- writer: the service that names the lease.
CREATE TABLE leases (
  name text PRIMARY KEY,
  owner text NOT NULL,
  epoch bigint NOT NULL,
  expires_at timestamptz NOT NULL
);

-- writer: api
CREATE TABLE people (
  name text PRIMARY KEY,
  display text NOT NULL,
  disabled boolean NOT NULL,
  created_at timestamptz NOT NULL
);
-- writer: api. project_group '*' is every group.
CREATE TABLE grants (
  person text NOT NULL,
  project_group text NOT NULL,
  role text NOT NULL,
  PRIMARY KEY (person, project_group, role)
);
-- writer: api. Only the SHA-256 of the secret half is kept.
CREATE TABLE tokens (
  id uuid PRIMARY KEY,
  hash bytea NOT NULL,
  person text NOT NULL,
  label text NOT NULL,
  scopes jsonb NOT NULL,
  project text,
  created_at timestamptz NOT NULL,
  expires_at timestamptz,
  revoked_at timestamptz
);
-- writer: api. key: project, project/environment, project/flow, host, policy, channel names.
CREATE TABLE catalog (
  kind text NOT NULL,
  key text NOT NULL,
  project text,
  revision bigint NOT NULL,
  doc jsonb NOT NULL,
  deleted boolean NOT NULL,
  updated_at timestamptz NOT NULL,
  updated_by text NOT NULL,
  PRIMARY KEY (kind, key)
);
-- writer: api
CREATE TABLE catalog_revisions (
  kind text NOT NULL,
  key text NOT NULL,
  revision bigint NOT NULL,
  doc jsonb NOT NULL,
  deleted boolean NOT NULL,
  author text NOT NULL,
  at timestamptz NOT NULL,
  PRIMARY KEY (kind, key, revision)
);
-- writer: api. scope: 'project/<name>' or 'channel'. Sealed with the master key, which is never in the database.
CREATE TABLE secrets (
  scope text NOT NULL,
  name text NOT NULL,
  sealed bytea NOT NULL,
  updated_at timestamptz NOT NULL,
  updated_by text NOT NULL,
  PRIMARY KEY (scope, name)
);
-- writer: api
CREATE TABLE artifacts (
  id uuid PRIMARY KEY,
  project text NOT NULL,
  version text NOT NULL,
  digest text NOT NULL,
  doc jsonb NOT NULL,
  created_at timestamptz NOT NULL,
  UNIQUE (project, version)
);
-- writer: api. The trigger log and the replay guard of every incoming event; rows live 30 days at least.
CREATE TABLE intake (
  source text NOT NULL,
  project text NOT NULL,
  delivery_id text NOT NULL,
  outcome text NOT NULL,
  reason text NOT NULL,
  kind text NOT NULL,
  artifact_id uuid,
  command_id uuid,
  answer jsonb NOT NULL,
  trace text,
  received_at timestamptz NOT NULL,
  PRIMARY KEY (source, project, delivery_id)
);
CREATE INDEX intake_by_time ON intake (received_at);
-- writer: api. Every accepted request, durable before its 2xx.
CREATE TABLE commands (
  id uuid PRIMARY KEY,
  verb text NOT NULL,
  project text NOT NULL,
  environment text,
  deployment_id uuid,
  actor text NOT NULL,
  payload jsonb NOT NULL,
  trace text,
  created_at timestamptz NOT NULL
);
-- writer: api inserts with the command; scheduler deletes with the outcome. What the scheduler has yet to decide.
CREATE TABLE command_queue (
  command_id uuid PRIMARY KEY,
  deployment_id uuid,
  created_at timestamptz NOT NULL
);
-- writer: api
CREATE TABLE idempotency (
  actor text NOT NULL,
  key text NOT NULL,
  request_hash bytea NOT NULL,
  status bigint NOT NULL,
  response jsonb NOT NULL,
  created_at timestamptz NOT NULL,
  PRIMARY KEY (actor, key)
);
-- writer: api
CREATE TABLE enroll_tokens (
  id uuid PRIMARY KEY,
  hash bytea NOT NULL,
  host text NOT NULL,
  replaces boolean NOT NULL,
  created_by text NOT NULL,
  created_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  used_at timestamptz
);
-- writer: api. The identity of an agent; ids are never reused. One live agent a host.
CREATE TABLE agents (
  id uuid PRIMARY KEY,
  host text NOT NULL,
  public_key text NOT NULL UNIQUE,
  enrolled_at timestamptz NOT NULL,
  revoked_at timestamptz
);
CREATE UNIQUE INDEX agents_live_host ON agents (host) WHERE revoked_at IS NULL;

-- writer: scheduler
CREATE TABLE command_outcomes (
  command_id uuid PRIMARY KEY,
  accepted boolean NOT NULL,
  code text NOT NULL,
  detail text NOT NULL,
  deployment_id uuid,
  decided_at timestamptz NOT NULL
);
-- writer: scheduler
CREATE TABLE releases (
  id uuid PRIMARY KEY,
  project text NOT NULL,
  version text NOT NULL,
  kind text NOT NULL,
  artifact_id uuid NOT NULL,
  doc jsonb NOT NULL,
  created_at timestamptz NOT NULL,
  created_by text NOT NULL
);
-- writer: scheduler
CREATE TABLE deployments (
  id uuid PRIMARY KEY,
  project text NOT NULL,
  environment text NOT NULL,
  release_id uuid NOT NULL,
  state text NOT NULL,
  version bigint NOT NULL,
  wake_at timestamptz,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  doc jsonb NOT NULL
);
-- The second guard of the environment lock (the first is the row in `locks`): one active deployment a project and environment.
CREATE UNIQUE INDEX deployments_one_active ON deployments (project, environment) WHERE state IN ('running', 'paused', 'aborting');
CREATE INDEX deployments_by_project ON deployments (project, created_at, id);
CREATE INDEX deployments_by_time ON deployments (created_at, id);
CREATE INDEX deployments_due ON deployments (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX deployments_queued ON deployments (project, environment, created_at) WHERE state = 'queued';
-- writer: scheduler
CREATE TABLE plans (
  deployment_id uuid NOT NULL,
  digest text NOT NULL,
  doc jsonb NOT NULL,
  created_at timestamptz NOT NULL,
  PRIMARY KEY (deployment_id, digest)
);
-- writer: scheduler
CREATE TABLE approvals (
  deployment_id uuid NOT NULL,
  plan_digest text NOT NULL,
  person text NOT NULL,
  doc jsonb NOT NULL,
  at timestamptz NOT NULL,
  PRIMARY KEY (deployment_id, plan_digest, person)
);
-- writer: scheduler. A free lock keeps its row, because its fence only grows.
CREATE TABLE locks (
  project text NOT NULL,
  environment text NOT NULL,
  deployment_id uuid,
  fence bigint NOT NULL,
  taken_at timestamptz,
  PRIMARY KEY (project, environment)
);
-- writer: scheduler. A wave or a central step for executors to carry out; `desired` turns to 'abort' and never back.
CREATE TABLE works (
  id uuid PRIMARY KEY,
  deployment_id uuid NOT NULL,
  project text NOT NULL,
  environment text NOT NULL,
  pool text NOT NULL,
  desired text NOT NULL,
  fence bigint NOT NULL,
  plan_digest text NOT NULL,
  spec jsonb NOT NULL,
  applied bigint NOT NULL,
  trace text,
  created_at timestamptz NOT NULL
);
CREATE INDEX works_by_deployment ON works (deployment_id);
-- writer: scheduler. A person took responsibility for an unknown task; executors apply the row and rewrite the result.
CREATE TABLE task_overrides (
  task_id uuid PRIMARY KEY,
  person text NOT NULL,
  reason text NOT NULL,
  at timestamptz NOT NULL
);
-- writer: scheduler
CREATE TABLE environment_state (
  project text NOT NULL,
  environment text NOT NULL,
  doc jsonb NOT NULL,
  updated_at timestamptz NOT NULL,
  PRIMARY KEY (project, environment)
);

-- writer: scheduler inserts the row with the work (phase 'ready', epoch 0); from then on executor alone.
CREATE TABLE work_claims (
  work_id uuid PRIMARY KEY,
  deployment_id uuid NOT NULL,
  pool text NOT NULL,
  owner text,
  epoch bigint NOT NULL,
  expires_at timestamptz,
  phase text NOT NULL,
  result jsonb,
  result_version bigint NOT NULL,
  updated_at timestamptz NOT NULL
);
CREATE INDEX work_claims_open ON work_claims (pool, expires_at) WHERE phase <> 'settled';
-- writer: executor. One attempt of an ordered list of host-local steps on one host.
CREATE TABLE tasks (
  id uuid PRIMARY KEY,
  work_id uuid NOT NULL,
  deployment_id uuid NOT NULL,
  step text NOT NULL,
  segment bigint NOT NULL,
  host text NOT NULL,
  agent_id uuid,
  attempt bigint NOT NULL,
  state text NOT NULL,
  version bigint NOT NULL,
  doc jsonb NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  UNIQUE (deployment_id, step, segment, host, attempt)
);
CREATE INDEX tasks_by_work ON tasks (work_id);
CREATE INDEX tasks_open_by_agent ON tasks (agent_id) WHERE state IN ('offered', 'granted', 'unknown');
-- writer: executor. What was last heard of an agent.
CREATE TABLE agent_sessions (
  agent_id uuid PRIMARY KEY,
  host text NOT NULL,
  instance text NOT NULL,
  boot_id text NOT NULL,
  journal_seq bigint NOT NULL,
  agent_version text NOT NULL,
  last_seen_at timestamptz NOT NULL,
  facts jsonb NOT NULL
);
-- writer: executor. `n` counts a deployment's chunks without a gap: it is the cursor of every log stream.
CREATE TABLE log_heads (
  deployment_id uuid PRIMARY KEY,
  next bigint NOT NULL
);
-- writer: executor
CREATE TABLE log_chunks (
  deployment_id uuid NOT NULL,
  n bigint NOT NULL,
  task_id uuid NOT NULL,
  seq bigint NOT NULL,
  host text NOT NULL,
  step text NOT NULL,
  stream text NOT NULL,
  at timestamptz NOT NULL,
  data bytea NOT NULL,
  PRIMARY KEY (deployment_id, n)
);
CREATE UNIQUE INDEX log_chunks_by_task ON log_chunks (task_id, seq);

-- writer: notifier. One row an event and channel; `id` is the dedupe key every try sends.
CREATE TABLE notifications (
  id uuid PRIMARY KEY,
  event_id uuid NOT NULL,
  channel text NOT NULL,
  project text,
  state text NOT NULL,
  attempts bigint NOT NULL,
  next_at timestamptz NOT NULL,
  leased_until timestamptz,
  message jsonb NOT NULL,
  last_error text,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  retried_at timestamptz,
  UNIQUE (event_id, channel)
);
CREATE INDEX notifications_due ON notifications (next_at) WHERE state = 'pending';
CREATE INDEX notifications_by_state ON notifications (state, created_at, id);
-- writer: api inserts; notifier deletes when it has queued the dead notification again.
CREATE TABLE notification_retries (
  id uuid PRIMARY KEY,
  requested_by text NOT NULL,
  at timestamptz NOT NULL
);
-- writer: notifier. What each far end (a robot, a mail server) still allows, and how often in a row it failed; `channel` is
-- the provider and the name of its URL secret, because two channels of one robot share its limit. The row is also the lock
-- under which deliveries to it are claimed.
CREATE TABLE channel_rates (
  channel text PRIMARY KEY,
  tokens double precision NOT NULL,
  refilled_at timestamptz NOT NULL,
  blocked_until timestamptz,
  failures bigint NOT NULL
);

-- writer: auditor. Leaf `idx` of the Merkle tree is one event; `leaf` is the exact bytes that were hashed.
CREATE TABLE audit_leaves (
  idx bigint PRIMARY KEY,
  event_id uuid NOT NULL UNIQUE,
  leaf bytea NOT NULL,
  hash bytea NOT NULL
);
-- writer: auditor. `frontier` is the compact right edge, enough to go on from this size.
CREATE TABLE audit_checkpoints (
  size bigint PRIMARY KEY,
  root bytea NOT NULL,
  frontier jsonb NOT NULL,
  note text NOT NULL,
  at timestamptz NOT NULL
);

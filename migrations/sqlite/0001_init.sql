-- The whole schema. Each table's header names its ONE writer; every service may read.
-- Kept in step with migrations/postgres by a test that compares tables and columns.
-- Documents (`doc`, `spec`, `result`, `payload`) are JSON of a type in shared/domain; the columns beside them are what queries need.

-- writer: all (insert only; nothing updates or deletes). Outbox, history and audit source at once.
CREATE TABLE events (
  id BLOB PRIMARY KEY,
  aggregate TEXT NOT NULL,
  aggregate_id TEXT NOT NULL,
  agg_seq INTEGER NOT NULL,
  type TEXT NOT NULL,
  project TEXT,
  environment TEXT,
  severity TEXT NOT NULL,
  actor TEXT NOT NULL,
  at TEXT NOT NULL,
  payload TEXT NOT NULL,
  trace TEXT,
  UNIQUE (aggregate, aggregate_id, agg_seq)
) STRICT;
-- writer: all, through store::events::append. The row lock makes agg_seq gapless and commit-ordered.
CREATE TABLE event_heads (
  aggregate TEXT NOT NULL,
  aggregate_id TEXT NOT NULL,
  next INTEGER NOT NULL,
  PRIMARY KEY (aggregate, aggregate_id)
) STRICT;
-- writer: append inserts a row per consumer; a consumer deletes its own in the transaction that applies the effect.
CREATE TABLE event_queue (
  consumer TEXT NOT NULL,
  event_id BLOB NOT NULL,
  at TEXT NOT NULL,
  PRIMARY KEY (consumer, event_id)
) STRICT;
-- writer: the service that names the lease.
CREATE TABLE leases (
  name TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  expires_at TEXT NOT NULL
) STRICT;

-- writer: api
CREATE TABLE people (
  name TEXT PRIMARY KEY,
  display TEXT NOT NULL,
  disabled INTEGER NOT NULL,
  created_at TEXT NOT NULL
) STRICT;
-- writer: api. project_group '*' is every group.
CREATE TABLE grants (
  person TEXT NOT NULL,
  project_group TEXT NOT NULL,
  role TEXT NOT NULL,
  PRIMARY KEY (person, project_group, role)
) STRICT;
-- writer: api. Only the SHA-256 of the secret half is kept.
CREATE TABLE tokens (
  id BLOB PRIMARY KEY,
  hash BLOB NOT NULL,
  person TEXT NOT NULL,
  label TEXT NOT NULL,
  scopes TEXT NOT NULL,
  project TEXT,
  created_at TEXT NOT NULL,
  expires_at TEXT,
  revoked_at TEXT
) STRICT;
-- writer: api. key: project, project/environment, project/flow, host, policy, channel names.
CREATE TABLE catalog (
  kind TEXT NOT NULL,
  key TEXT NOT NULL,
  project TEXT,
  revision INTEGER NOT NULL,
  doc TEXT NOT NULL,
  deleted INTEGER NOT NULL,
  updated_at TEXT NOT NULL,
  updated_by TEXT NOT NULL,
  PRIMARY KEY (kind, key)
) STRICT;
-- writer: api
CREATE TABLE catalog_revisions (
  kind TEXT NOT NULL,
  key TEXT NOT NULL,
  revision INTEGER NOT NULL,
  doc TEXT NOT NULL,
  deleted INTEGER NOT NULL,
  author TEXT NOT NULL,
  at TEXT NOT NULL,
  PRIMARY KEY (kind, key, revision)
) STRICT;
-- writer: api. scope: 'project/<name>' or 'channel'. Sealed with the master key, which is never in the database.
CREATE TABLE secrets (
  scope TEXT NOT NULL,
  name TEXT NOT NULL,
  sealed BLOB NOT NULL,
  updated_at TEXT NOT NULL,
  updated_by TEXT NOT NULL,
  PRIMARY KEY (scope, name)
) STRICT;
-- writer: api
CREATE TABLE artifacts (
  id BLOB PRIMARY KEY,
  project TEXT NOT NULL,
  version TEXT NOT NULL,
  digest TEXT NOT NULL,
  doc TEXT NOT NULL,
  created_at TEXT NOT NULL,
  UNIQUE (project, version)
) STRICT;
-- writer: api. The trigger log and the replay guard of every incoming event; rows live 30 days at least.
CREATE TABLE intake (
  source TEXT NOT NULL,
  project TEXT NOT NULL,
  delivery_id TEXT NOT NULL,
  outcome TEXT NOT NULL,
  reason TEXT NOT NULL,
  kind TEXT NOT NULL,
  artifact_id BLOB,
  command_id BLOB,
  answer TEXT NOT NULL,
  trace TEXT,
  received_at TEXT NOT NULL,
  PRIMARY KEY (source, project, delivery_id)
) STRICT;
CREATE INDEX intake_by_time ON intake (received_at);
-- writer: api. Every accepted request, durable before its 2xx.
CREATE TABLE commands (
  id BLOB PRIMARY KEY,
  verb TEXT NOT NULL,
  project TEXT NOT NULL,
  environment TEXT,
  deployment_id BLOB,
  actor TEXT NOT NULL,
  payload TEXT NOT NULL,
  trace TEXT,
  created_at TEXT NOT NULL
) STRICT;
-- writer: api inserts with the command; scheduler deletes with the outcome. What the scheduler has yet to decide.
CREATE TABLE command_queue (
  command_id BLOB PRIMARY KEY,
  deployment_id BLOB,
  created_at TEXT NOT NULL
) STRICT;
-- writer: api
CREATE TABLE idempotency (
  actor TEXT NOT NULL,
  key TEXT NOT NULL,
  request_hash BLOB NOT NULL,
  status INTEGER NOT NULL,
  response TEXT NOT NULL,
  created_at TEXT NOT NULL,
  PRIMARY KEY (actor, key)
) STRICT;
-- writer: api
CREATE TABLE enroll_tokens (
  id BLOB PRIMARY KEY,
  hash BLOB NOT NULL,
  host TEXT NOT NULL,
  replaces INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  created_at TEXT NOT NULL,
  expires_at TEXT NOT NULL,
  used_at TEXT
) STRICT;
-- writer: api. The identity of an agent; ids are never reused. One live agent a host.
CREATE TABLE agents (
  id BLOB PRIMARY KEY,
  host TEXT NOT NULL,
  public_key TEXT NOT NULL UNIQUE,
  enrolled_at TEXT NOT NULL,
  revoked_at TEXT
) STRICT;
CREATE UNIQUE INDEX agents_live_host ON agents (host) WHERE revoked_at IS NULL;

-- writer: scheduler
CREATE TABLE command_outcomes (
  command_id BLOB PRIMARY KEY,
  accepted INTEGER NOT NULL,
  code TEXT NOT NULL,
  detail TEXT NOT NULL,
  deployment_id BLOB,
  decided_at TEXT NOT NULL
) STRICT;
-- writer: scheduler
CREATE TABLE releases (
  id BLOB PRIMARY KEY,
  project TEXT NOT NULL,
  version TEXT NOT NULL,
  kind TEXT NOT NULL,
  artifact_id BLOB NOT NULL,
  doc TEXT NOT NULL,
  created_at TEXT NOT NULL,
  created_by TEXT NOT NULL
) STRICT;
-- writer: scheduler
CREATE TABLE deployments (
  id BLOB PRIMARY KEY,
  project TEXT NOT NULL,
  environment TEXT NOT NULL,
  release_id BLOB NOT NULL,
  state TEXT NOT NULL,
  version INTEGER NOT NULL,
  wake_at TEXT,
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  doc TEXT NOT NULL
) STRICT;
-- The second guard of the environment lock (the first is the row in `locks`): one active deployment a project and environment.
CREATE UNIQUE INDEX deployments_one_active ON deployments (project, environment) WHERE state IN ('running', 'paused', 'aborting');
CREATE INDEX deployments_by_project ON deployments (project, created_at, id);
CREATE INDEX deployments_by_time ON deployments (created_at, id);
CREATE INDEX deployments_due ON deployments (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX deployments_queued ON deployments (project, environment, created_at) WHERE state = 'queued';
-- writer: scheduler
CREATE TABLE plans (
  deployment_id BLOB NOT NULL,
  digest TEXT NOT NULL,
  doc TEXT NOT NULL,
  created_at TEXT NOT NULL,
  PRIMARY KEY (deployment_id, digest)
) STRICT;
-- writer: scheduler
CREATE TABLE approvals (
  deployment_id BLOB NOT NULL,
  plan_digest TEXT NOT NULL,
  person TEXT NOT NULL,
  doc TEXT NOT NULL,
  at TEXT NOT NULL,
  PRIMARY KEY (deployment_id, plan_digest, person)
) STRICT;
-- writer: scheduler. A free lock keeps its row, because its fence only grows.
CREATE TABLE locks (
  project TEXT NOT NULL,
  environment TEXT NOT NULL,
  deployment_id BLOB,
  fence INTEGER NOT NULL,
  taken_at TEXT,
  PRIMARY KEY (project, environment)
) STRICT;
-- writer: scheduler. A wave or a central step for executors to carry out; `desired` turns to 'abort' and never back.
CREATE TABLE works (
  id BLOB PRIMARY KEY,
  deployment_id BLOB NOT NULL,
  project TEXT NOT NULL,
  environment TEXT NOT NULL,
  pool TEXT NOT NULL,
  desired TEXT NOT NULL,
  fence INTEGER NOT NULL,
  plan_digest TEXT NOT NULL,
  spec TEXT NOT NULL,
  applied INTEGER NOT NULL,
  trace TEXT,
  created_at TEXT NOT NULL
) STRICT;
CREATE INDEX works_by_deployment ON works (deployment_id);
-- writer: scheduler. A person took responsibility for an unknown task; executors apply the row and rewrite the result.
CREATE TABLE task_overrides (
  task_id BLOB PRIMARY KEY,
  person TEXT NOT NULL,
  reason TEXT NOT NULL,
  at TEXT NOT NULL
) STRICT;
-- writer: scheduler
CREATE TABLE environment_state (
  project TEXT NOT NULL,
  environment TEXT NOT NULL,
  doc TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  PRIMARY KEY (project, environment)
) STRICT;

-- writer: scheduler inserts the row with the work (phase 'ready', epoch 0); from then on executor alone.
CREATE TABLE work_claims (
  work_id BLOB PRIMARY KEY,
  deployment_id BLOB NOT NULL,
  pool TEXT NOT NULL,
  owner TEXT,
  epoch INTEGER NOT NULL,
  expires_at TEXT,
  phase TEXT NOT NULL,
  result TEXT,
  result_version INTEGER NOT NULL,
  updated_at TEXT NOT NULL
) STRICT;
CREATE INDEX work_claims_open ON work_claims (pool, expires_at) WHERE phase <> 'settled';
-- writer: executor. One attempt of an ordered list of host-local steps on one host.
CREATE TABLE tasks (
  id BLOB PRIMARY KEY,
  work_id BLOB NOT NULL,
  deployment_id BLOB NOT NULL,
  step TEXT NOT NULL,
  segment INTEGER NOT NULL,
  host TEXT NOT NULL,
  agent_id BLOB,
  attempt INTEGER NOT NULL,
  state TEXT NOT NULL,
  version INTEGER NOT NULL,
  doc TEXT NOT NULL,
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  UNIQUE (deployment_id, step, segment, host, attempt)
) STRICT;
CREATE INDEX tasks_by_work ON tasks (work_id);
CREATE INDEX tasks_open_by_agent ON tasks (agent_id) WHERE state IN ('offered', 'granted', 'unknown');
-- writer: executor. What was last heard of an agent.
CREATE TABLE agent_sessions (
  agent_id BLOB PRIMARY KEY,
  host TEXT NOT NULL,
  instance TEXT NOT NULL,
  boot_id TEXT NOT NULL,
  journal_seq INTEGER NOT NULL,
  agent_version TEXT NOT NULL,
  last_seen_at TEXT NOT NULL,
  facts TEXT NOT NULL
) STRICT;
-- writer: executor. `n` counts a deployment's chunks without a gap: it is the cursor of every log stream.
CREATE TABLE log_heads (
  deployment_id BLOB PRIMARY KEY,
  next INTEGER NOT NULL
) STRICT;
-- writer: executor
CREATE TABLE log_chunks (
  deployment_id BLOB NOT NULL,
  n INTEGER NOT NULL,
  task_id BLOB NOT NULL,
  seq INTEGER NOT NULL,
  host TEXT NOT NULL,
  step TEXT NOT NULL,
  stream TEXT NOT NULL,
  at TEXT NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (deployment_id, n)
) STRICT;
CREATE UNIQUE INDEX log_chunks_by_task ON log_chunks (task_id, seq);

-- writer: notifier. One row an event and channel; `id` is the dedupe key every try sends.
CREATE TABLE notifications (
  id BLOB PRIMARY KEY,
  event_id BLOB NOT NULL,
  channel TEXT NOT NULL,
  project TEXT,
  state TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  next_at TEXT NOT NULL,
  leased_until TEXT,
  message TEXT NOT NULL,
  last_error TEXT,
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  retried_at TEXT,
  UNIQUE (event_id, channel)
) STRICT;
CREATE INDEX notifications_due ON notifications (next_at) WHERE state = 'pending';
CREATE INDEX notifications_by_state ON notifications (state, created_at, id);
-- writer: api inserts; notifier deletes when it has queued the dead notification again.
CREATE TABLE notification_retries (
  id BLOB PRIMARY KEY,
  requested_by TEXT NOT NULL,
  at TEXT NOT NULL
) STRICT;
-- writer: notifier. What each far end (a robot, a mail server) still allows, and how often in a row it failed; `channel` is
-- the provider and the name of its URL secret, because two channels of one robot share its limit. The row is also the lock
-- under which deliveries to it are claimed.
CREATE TABLE channel_rates (
  channel TEXT PRIMARY KEY,
  tokens REAL NOT NULL,
  refilled_at TEXT NOT NULL,
  blocked_until TEXT,
  failures INTEGER NOT NULL
) STRICT;

-- writer: auditor. Leaf `idx` of the Merkle tree is one event; `leaf` is the exact bytes that were hashed.
CREATE TABLE audit_leaves (
  idx INTEGER PRIMARY KEY,
  event_id BLOB NOT NULL UNIQUE,
  leaf BLOB NOT NULL,
  hash BLOB NOT NULL
) STRICT;
-- writer: auditor. `frontier` is the compact right edge, enough to go on from this size.
CREATE TABLE audit_checkpoints (
  size INTEGER PRIMARY KEY,
  root BLOB NOT NULL,
  frontier TEXT NOT NULL,
  note TEXT NOT NULL,
  at TEXT NOT NULL
) STRICT;

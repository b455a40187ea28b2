-- Release bundles, promotion and projects that live in Git.

-- writer: scheduler. Several releases as one; each member is a deployment of its own.
CREATE TABLE bundles (
  id BLOB PRIMARY KEY,
  state TEXT NOT NULL,
  version INTEGER NOT NULL,
  wake_at TEXT,
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  doc TEXT NOT NULL
) STRICT;
CREATE INDEX bundles_by_time ON bundles (created_at, id);
CREATE INDEX bundles_open ON bundles (state) WHERE state IN ('awaiting_approval', 'running', 'paused', 'rolling_back');
-- writer: scheduler. Which deployments belong to which bundle: those it has and those it had.
CREATE TABLE bundle_members (
  deployment_id BLOB PRIMARY KEY,
  bundle_id BLOB NOT NULL,
  project TEXT NOT NULL
) STRICT;
CREATE INDEX bundle_members_by_bundle ON bundle_members (bundle_id);
-- Commands to bundles; set by the api with the command.
ALTER TABLE command_queue ADD COLUMN bundle_id BLOB;

-- writer: scheduler, in the transaction that ends (or takes back) the deployment. An artifact that ended well in the whole of
-- an environment; a withdrawn row proves nothing any more.
CREATE TABLE verified (
  project TEXT NOT NULL,
  environment TEXT NOT NULL,
  digest TEXT NOT NULL,
  version TEXT NOT NULL,
  artifact_id BLOB NOT NULL,
  deployment_id BLOB NOT NULL,
  at TEXT NOT NULL,
  withdrawn_at TEXT,
  withdrawn_by TEXT,
  reason TEXT,
  PRIMARY KEY (project, environment, digest)
) STRICT;
-- writer: scheduler. What `on_verified` of a policy asks for: once an artifact and environment, in the transaction that verified it.
CREATE TABLE promotions (
  project TEXT NOT NULL,
  environment TEXT NOT NULL,
  digest TEXT NOT NULL,
  from_environment TEXT NOT NULL,
  policy TEXT NOT NULL,
  artifact_id BLOB NOT NULL,
  deployment_id BLOB NOT NULL,
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  due_at TEXT NOT NULL,
  created_at TEXT NOT NULL,
  PRIMARY KEY (project, environment, digest)
) STRICT;
CREATE INDEX promotions_due ON promotions (due_at) WHERE state = 'due';

-- writer: api. A project's Git repository: what was fetched, what was applied, and what is wrong with it.
CREATE TABLE sources (
  project TEXT PRIMARY KEY,
  fetched_commit TEXT,
  applied_commit TEXT,
  state TEXT NOT NULL,
  detail TEXT NOT NULL,
  faults TEXT NOT NULL,
  items TEXT NOT NULL,
  refresh_at TEXT NOT NULL,
  fetched_at TEXT,
  applied_at TEXT
) STRICT;

-- Release bundles, promotion and projects that live in Git.

-- writer: scheduler. Several releases as one; each member is a deployment of its own.
CREATE TABLE bundles (
  id uuid PRIMARY KEY,
  state text NOT NULL,
  version bigint NOT NULL,
  wake_at timestamptz,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  doc jsonb NOT NULL
);
CREATE INDEX bundles_by_time ON bundles (created_at, id);
CREATE INDEX bundles_open ON bundles (state) WHERE state IN ('awaiting_approval', 'running', 'paused', 'rolling_back');
-- writer: scheduler. Which deployments belong to which bundle: those it has and those it had.
CREATE TABLE bundle_members (
  deployment_id uuid PRIMARY KEY,
  bundle_id uuid NOT NULL,
  project text NOT NULL
);
CREATE INDEX bundle_members_by_bundle ON bundle_members (bundle_id);
-- Commands to bundles; set by the api with the command.
ALTER TABLE command_queue ADD COLUMN bundle_id uuid;

-- writer: scheduler, in the transaction that ends (or takes back) the deployment. An artifact that ended well in the whole of
-- an environment; a withdrawn row proves nothing any more.
CREATE TABLE verified (
  project text NOT NULL,
  environment text NOT NULL,
  digest text NOT NULL,
  version text NOT NULL,
  artifact_id uuid NOT NULL,
  deployment_id uuid NOT NULL,
  at timestamptz NOT NULL,
  withdrawn_at timestamptz,
  withdrawn_by text,
  reason text,
  PRIMARY KEY (project, environment, digest)
);
-- writer: scheduler. What `on_verified` of a policy asks for: once an artifact and environment, in the transaction that verified it.
CREATE TABLE promotions (
  project text NOT NULL,
  environment text NOT NULL,
  digest text NOT NULL,
  from_environment text NOT NULL,
  policy text NOT NULL,
  artifact_id uuid NOT NULL,
  deployment_id uuid NOT NULL,
  state text NOT NULL,
  reason text NOT NULL,
  due_at timestamptz NOT NULL,
  created_at timestamptz NOT NULL,
  PRIMARY KEY (project, environment, digest)
);
CREATE INDEX promotions_due ON promotions (due_at) WHERE state = 'due';

-- writer: api. A project's Git repository: what was fetched, what was applied, and what is wrong with it.
CREATE TABLE sources (
  project text PRIMARY KEY,
  fetched_commit text,
  applied_commit text,
  state text NOT NULL,
  detail text NOT NULL,
  faults jsonb NOT NULL,
  items jsonb NOT NULL,
  refresh_at timestamptz NOT NULL,
  fetched_at timestamptz,
  applied_at timestamptz
);

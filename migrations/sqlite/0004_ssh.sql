-- Hosts reached by SSH.
--
-- `agents` gets a second writer: the executor, for hosts whose catalog entry has `ssh`. It alone sees such a host's key, over
-- a connection whose host key a person pinned; asking the api to write the row would add a wait and prove nothing more. It
-- inserts rows for those hosts, and revokes only rows that it inserted itself (`ssh_hosts.agent_id`).

-- writer: executor (who holds the lease `ssh/<host>`). What is known of the last connection to the host.
CREATE TABLE ssh_hosts (
  host TEXT PRIMARY KEY,
  -- The agent that was made for the host; NULL before the first connection.
  agent_id BLOB,
  -- When a connection was last made, or was last tried in vain.
  checked_at TEXT NOT NULL,
  -- Why the last try failed; NULL when it did not.
  error TEXT
) STRICT;

-- writer: api. Public keys of the control plane that agents must know, for processes that do not hold the private ones.
CREATE TABLE control_keys (
  name TEXT PRIMARY KEY,
  public_key TEXT NOT NULL
) STRICT;

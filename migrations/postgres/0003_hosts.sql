-- writer: api. A locked host takes no new tasks until it is unlocked; what runs there goes on.
CREATE TABLE host_locks (
  host TEXT PRIMARY KEY,
  reason TEXT NOT NULL,
  locked_by TEXT NOT NULL,
  locked_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX tasks_active_on_host ON tasks (host) WHERE state IN ('offered', 'granted');

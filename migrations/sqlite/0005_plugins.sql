-- Calls of plugins, so that whoever takes a work over goes on where its owner stopped.

-- writer: executor (the holder of the work's claim). `begun` names the verb whose answer was not stored; `answer` is the
-- last one that was; `callback` is the SHA-256 of the one-time token a callback must bring.
CREATE TABLE plugin_calls (
  work_id BLOB PRIMARY KEY,
  pool TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  plugin TEXT NOT NULL,
  begun TEXT,
  answer TEXT,
  callback BLOB,
  started_at TEXT NOT NULL,
  updated_at TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX plugin_calls_by_callback ON plugin_calls (callback) WHERE callback IS NOT NULL;
-- writer: api. A token is used once: its row is what was brought.
CREATE TABLE plugin_callbacks (
  token BLOB PRIMARY KEY,
  work_id BLOB NOT NULL,
  body TEXT NOT NULL,
  received_at TEXT NOT NULL
) STRICT;

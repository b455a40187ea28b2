-- Calls of plugins, so that whoever takes a work over goes on where its owner stopped.

-- writer: executor (the holder of the work's claim). `begun` names the verb whose answer was not stored; `answer` is the
-- last one that was; `callback` is the SHA-256 of the one-time token a callback must bring.
CREATE TABLE plugin_calls (
  work_id uuid PRIMARY KEY,
  pool text NOT NULL,
  epoch bigint NOT NULL,
  plugin text NOT NULL,
  begun text,
  answer jsonb,
  callback bytea,
  started_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX plugin_calls_by_callback ON plugin_calls (callback) WHERE callback IS NOT NULL;
-- writer: api. A token is used once: its row is what was brought.
CREATE TABLE plugin_callbacks (
  token bytea PRIMARY KEY,
  work_id uuid NOT NULL,
  body jsonb NOT NULL,
  received_at timestamptz NOT NULL
);

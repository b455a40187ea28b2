-- What running several versions and many processes needs, and what retention needs.

-- writer: whoever changes the schema. The lowest number of a newest migration that a program must know to work on this schema. A
-- migration that takes something away raises it; one that only adds does not, so that the version before runs on while it is replaced.
CREATE TABLE schema_floor (
  least bigint NOT NULL
);
INSERT INTO schema_floor (least) VALUES (11);

-- writer: every process, its own row; whoever finds a row that is a day old removes it. Decides nothing: it is what `doctor` shows.
CREATE TABLE processes (
  owner text PRIMARY KEY,
  services text NOT NULL,
  version text NOT NULL,
  migration bigint NOT NULL,
  machine text NOT NULL,
  started_at timestamptz NOT NULL,
  seen_at timestamptz NOT NULL,
  skew_ms bigint NOT NULL,
  disk_free bigint NOT NULL
);

-- When the log of a deployment was removed because of its age; a reader is told.
ALTER TABLE log_heads ADD COLUMN pruned_at timestamptz;

-- When a central step was let begin. A pause holds up what has not begun, whoever takes it over; absent where an executor of a
-- version before took it.
ALTER TABLE work_claims ADD COLUMN begun_at TEXT;

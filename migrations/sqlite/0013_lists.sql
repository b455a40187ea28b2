-- What the periodic looks and the lists ask for stands in an index: none of them reads all bundles, notifications or verified
-- artifacts that ever were.
CREATE INDEX bundles_wake ON bundles (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX notifications_by_time ON notifications (created_at, id);
CREATE INDEX verified_by_deployment ON verified (deployment_id);

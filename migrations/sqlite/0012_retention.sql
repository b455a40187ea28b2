-- What is old is found without reading what is not: the history may have a million rows, and removing holds the writer.
CREATE INDEX log_heads_kept ON log_heads (deployment_id) WHERE pruned_at IS NULL;
CREATE INDEX tasks_of_probes ON tasks (updated_at) WHERE segment = 1;
CREATE INDEX notifications_ended ON notifications (updated_at) WHERE state <> 'pending';
CREATE INDEX idempotency_by_time ON idempotency (created_at);
CREATE INDEX plugin_callbacks_by_time ON plugin_callbacks (received_at);

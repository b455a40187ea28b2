//! From events to notifications: one row an event and channel, in the transaction that takes the event off the queue.

use crate::{
    Error, Notifier,
    deliver::{DeadLetter, raise_dead},
    message::{Facts, Known},
    rules,
    template::{self, Message},
};
use std::collections::{BTreeSet, HashMap};
use uuid::Uuid;
use windlass_domain::{
    catalog::Channel,
    event::{Aggregate, Event},
    ids::{EventId, NotificationId},
};
use windlass_store::{
    Error as StoreError, Tx, deployments, events,
    notifications::{self, NewNotification, State},
};

/// Events taken in one transaction. On SQLite it is everybody's turn that is used, so keep it short.
const BATCH: u32 = 64;

impl Notifier {
    /// Takes all queued events and all retries people asked for. Returns the channels that have something new to send.
    pub async fn take_events(&self) -> Result<BTreeSet<String>, Error> {
        let mut woken = self.take_retries().await?;
        loop {
            let mut read = self.store.read().await?;
            let batch = events::queued(&mut read, events::NOTIFIER, None, BATCH).await?;
            if batch.is_empty() {
                return Ok(woken);
            }
            let (channels, unreadable) = notifications::channels(&mut read).await?;
            match unreadable.as_slice() {
                [] => self.health.ok("channels"),
                names => {
                    self.health.degraded("channels", format!("channels that cannot be read: {}", names.join(", ")))
                }
            }
            let rendered = self.render(&mut read, &batch, &channels).await?;
            // Rendering is done: the write transaction holds nothing but SQL.
            drop(read);
            let full = batch.len() == BATCH as usize;
            woken.extend(self.store_batch(&batch, rendered).await?);
            if !full {
                return Ok(woken);
            }
        }
    }

    async fn render(
        &self,
        read: &mut Tx,
        batch: &[Event],
        channels: &[Channel],
    ) -> Result<HashMap<EventId, Vec<(String, Message)>>, StoreError> {
        let mut out = HashMap::new();
        for e in batch {
            let hearers = rules::hearers(e, channels);
            if hearers.is_empty() {
                continue;
            }
            let facts = self.facts(read, e).await?;
            let messages = hearers.into_iter().map(|c| (c.name.clone(), template::render(e, &facts, c)));
            out.insert(e.id, messages.collect());
        }
        Ok(out)
    }

    /// The facts of an event, with what its deployment adds: the version, and what it waits for now.
    pub(crate) async fn facts(&self, read: &mut Tx, e: &Event) -> Result<Facts, StoreError> {
        let mut known = Known::default();
        if e.aggregate == Aggregate::Deployment.as_str()
            && let Ok(id) = e.aggregate_id.parse()
        {
            match deployments::get(read, id).await {
                Ok(Some(stored)) => {
                    let d = stored.deployment;
                    let waits: Vec<String> = d.waiting_on().iter().map(ToString::to_string).collect();
                    known.waiting_on = (!waits.is_empty()).then(|| waits.join("; "));
                    known.version = Some(d.version);
                }
                // The message goes out without.
                Ok(None) | Err(StoreError::Decode { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Facts::of(e, &known, &self.knobs.public_url))
    }

    async fn store_batch(
        &self,
        batch: &[Event],
        mut rendered: HashMap<EventId, Vec<(String, Message)>>,
    ) -> Result<BTreeSet<String>, Error> {
        let mut woken = BTreeSet::new();
        let mut room: HashMap<String, u64> = HashMap::new();
        let mut tx = self.store.write().await?;
        let now = tx.now().await?;
        let (told, silent): (Vec<&Event>, Vec<&Event>) = batch.iter().partition(|e| rendered.contains_key(&e.id));
        // Of what nobody hears it does not matter who takes it.
        let silent: Vec<EventId> = silent.into_iter().map(|e| e.id).collect();
        events::done(&mut tx, events::NOTIFIER, &silent).await?;
        for e in told {
            if events::done(&mut tx, events::NOTIFIER, &[e.id]).await? == 0 {
                // Another process took it with its own transaction.
                continue;
            }
            for (channel, message) in rendered.remove(&e.id).unwrap_or_default() {
                if !room.contains_key(&channel) {
                    let waiting = notifications::pending(&mut tx, &channel).await?;
                    room.insert(channel.clone(), self.knobs.max_pending.saturating_sub(waiting));
                }
                let left = room.entry(channel.clone()).or_default();
                let full = *left == 0;
                *left = left.saturating_sub(1);
                let refused =
                    full.then(|| format!("the channel already has {} notifications waiting", self.knobs.max_pending));
                let n = NewNotification {
                    id: id_of(e.id, &channel),
                    event_id: e.id,
                    channel: channel.clone(),
                    project: e.project.clone(),
                    message: serde_json::to_value(&message).map_err(StoreError::Encode)?,
                    state: if full { State::Dead } else { State::Pending },
                    last_error: refused.clone().or_else(|| message.template_error.clone()),
                };
                let new = notifications::insert(&mut tx, &n, now).await?;
                if let (true, Some(reason)) = (new, refused) {
                    let dead = DeadLetter {
                        id: n.id,
                        channel: &channel,
                        project: e.project.as_deref(),
                        attempts: 0,
                        reason: &reason,
                    };
                    raise_dead(&mut tx, &dead, Some(&message), now).await?;
                }
                if new && !full {
                    woken.insert(channel);
                }
            }
        }
        tx.commit().await?;
        Ok(woken)
    }

    async fn take_retries(&self) -> Result<BTreeSet<String>, Error> {
        let mut woken = BTreeSet::new();
        if !notifications::has_retries(&mut self.store.read().await?).await? {
            return Ok(woken);
        }
        let mut tx = self.store.write().await?;
        let now = tx.now().await?;
        for id in notifications::apply_retries(&mut tx, now).await? {
            woken.extend(notifications::get(&mut tx, id).await?.map(|n| n.channel));
        }
        tx.commit().await?;
        Ok(woken)
    }
}

/// The dedupe key: the same for the same event and channel, whoever computes it and however often.
fn id_of(event: EventId, channel: &str) -> NotificationId {
    NotificationId(Uuid::new_v5(&event.0, channel.as_bytes()))
}

//! What the trail says about each deployment: who asked, who approved, who overrode, and who else had a hand in it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use windlass_domain::{Timestamp, event::Event};

/// A person's recorded deed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    pub who: String,
    /// `requested`, `approval_given`, `rejected`, `overridden`, `paused`, `intervened: retry` …
    pub what: String,
    pub at: Timestamp,
    /// Comment, reason or note, where one was given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The leaf that proves it.
    pub leaf: u64,
}

/// One deployment as its leaves tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    pub project: Option<String>,
    pub environment: Option<String>,
    pub version: Option<String>,
    pub requested: Vec<Act>,
    pub approved: Vec<Act>,
    pub rejected: Vec<Act>,
    pub overrode: Vec<Act>,
    /// Everything else a named person did: pause, resume, confirm, retry, skip, ignore, exclude, cancel, abort, roll back.
    pub others: Vec<Act>,
    /// The plan digest it started with.
    pub digest: Option<String>,
    /// The last state its leaves name.
    pub state: Option<String>,
}

/// Takes the leaves of a trail in order.
#[derive(Debug, Clone, Default)]
pub struct Stories(BTreeMap<String, Story>);

impl Stories {
    /// Adds what leaf `idx` says.
    pub fn add(&mut self, idx: u64, e: &Event) {
        if e.aggregate != "deployment" {
            return;
        }
        let text = |key: &str| e.payload.get(key).and_then(|v| v.as_str()).map(str::to_owned);
        let story = self.0.entry(e.aggregate_id.clone()).or_default();
        story.project = story.project.take().or_else(|| e.project.clone());
        story.environment = story.environment.take().or_else(|| e.environment.clone());
        story.version = story.version.take().or_else(|| text("version"));
        let Some(what) = e.what.strip_prefix("deployment.") else { return };
        story.state = text("state").or_else(|| story.state.take());
        if what == "started" {
            story.digest = text("digest");
        }
        // `approved` sums up the single approvals, each of which has its own leaf; a list as `by` is no deed of one person.
        let Some(who) = text("by").filter(|_| what != "approved") else { return };
        let why = ["comment", "reason", "note"].into_iter().find_map(text).unwrap_or_default();
        let named = text("verb").map_or_else(|| what.to_owned(), |verb| format!("{what}: {verb}"));
        let act = Act { who, what: named, at: e.at, why, leaf: idx };
        match what {
            "requested" => story.requested.push(act),
            "approval_given" => story.approved.push(act),
            "rejected" => story.rejected.push(act),
            "overridden" => story.overrode.push(act),
            _ => story.others.push(act),
        }
    }

    /// Deployment id to story.
    pub fn into_map(self) -> BTreeMap<String, Story> {
        self.0
    }
}

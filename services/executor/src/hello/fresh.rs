//! Which HELLOs are believed. A broker in wrong hands can say every HELLO again that ever passed, so one that would replace a
//! journal or quarantine an agent counts only when it answers a challenge: then it is younger than the challenge. Any executor
//! takes HELLOs, so what is asked stands in the session.

use super::Verdict;
use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use windlass_contracts::frames::Hello;
use windlass_domain::Timestamp;

/// Asked again while it is younger: HELLOs that are said again and again must not outdate what the true agent answers.
const YOUNG: TimeDelta = TimeDelta::seconds(60);
/// An answer counts this long.
const VALID: TimeDelta = TimeDelta::seconds(120);
const REPLACED: &str = "_replaced";
const ASKED: &str = "_asked";
const ANSWERS: &str = "_answers";
/// Earlier instances are remembered, to see them come back.
const REMEMBERED: usize = 8;

/// A challenge on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) challenge: String,
    at: Timestamp,
    /// How far the journal was known to be: an answer is younger, so one that is behind this comes from a journal that went
    /// back. What was heard since proves nothing, because the answer may have been held up.
    journal_seq: u64,
}

impl Asked {
    pub(super) fn new(journal_seq: u64, now: Timestamp) -> Asked {
        Asked { challenge: format!("{:032x}", rand::random::<u128>()), at: now, journal_seq }
    }

    /// A clock that was set back makes it old, too.
    fn within(&self, limit: TimeDelta, now: Timestamp) -> bool {
        (TimeDelta::zero()..limit).contains(&(now - self.at))
    }

    fn is_answered(&self, h: &Hello) -> bool {
        h.answers.as_ref() == Some(&self.challenge)
    }
}

/// What executors keep in a session's facts, beside what the agent says there.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Kept {
    /// Instances that others took over from.
    pub(super) replaced: Vec<String>,
    pub(super) asked: Option<Asked>,
    /// The agent has said HELLO in the form that answers. From then on its older HELLOs count for less.
    pub(super) answers: bool,
}

impl Kept {
    pub(super) fn of(facts: &Value) -> Kept {
        let read = |key: &str| facts.get(key).cloned().unwrap_or_default();
        Kept {
            replaced: serde_json::from_value(read(REPLACED)).unwrap_or_default(),
            asked: serde_json::from_value(read(ASKED)).unwrap_or_default(),
            answers: read(ANSWERS) == true,
        }
    }

    /// Over whatever the agent said under these names.
    pub(super) fn write(&self, facts: &mut Map<String, Value>) {
        facts.insert(REPLACED.into(), self.replaced.clone().into());
        for (key, value) in [(ASKED, serde_json::to_value(&self.asked)), (ANSWERS, Ok(self.answers.into()))] {
            match value {
                Ok(v) if !v.is_null() && v != false => drop(facts.insert(key.into(), v)),
                _ => drop(facts.remove(key)),
            }
        }
    }

    pub(super) fn replace(&mut self, instance: String) {
        self.replaced.push(instance);
        let extra = self.replaced.len().saturating_sub(REMEMBERED);
        self.replaced.drain(..extra);
    }

    /// Whether `verdict`, which this HELLO led to, is to be carried out.
    pub(super) fn believes(&self, verdict: Verdict, h: &Hello, now: Timestamp) -> bool {
        let asked = self.asked.as_ref().filter(|a| a.within(VALID, now));
        match verdict {
            Verdict::First | Verdict::Same | Verdict::Quarantined => true,
            // An agent of the version before cannot answer: a journal that seems behind is asked once more, because frames may
            // have overtaken each other; all else is taken at its word.
            Verdict::RolledBack if self.is_former(h) => asked.is_some(),
            Verdict::Replaces | Verdict::Cloned if self.is_former(h) => true,
            Verdict::RolledBack => asked.is_some_and(|a| a.is_answered(h) && h.journal_seq < a.journal_seq),
            Verdict::Replaces | Verdict::Cloned => asked.is_some_and(|a| a.is_answered(h)),
        }
    }

    /// As long as nothing else was heard of it, the agent may be one that cannot answer.
    fn is_former(&self, h: &Hello) -> bool {
        !self.answers && h.answers.is_none()
    }

    /// All that was granted before then is in this HELLO's list, or the journal does not know it. `None`: the HELLO may be one
    /// of any age that somebody says again. An agent that cannot answer is taken at its word.
    pub(super) fn complete_since(&self, h: &Hello, now: Timestamp) -> Option<Timestamp> {
        let answered = self.asked.as_ref().filter(|a| a.within(VALID, now) && a.is_answered(h)).map(|a| a.at);
        answered.or_else(|| self.is_former(h).then_some(now))
    }

    /// The challenge whose answer lists all that was granted up to `since`.
    pub(super) fn ask_since(&mut self, since: Timestamp, journal_seq: u64, now: Timestamp) -> Asked {
        let young = self.asked.take().filter(|a| a.within(YOUNG, now) && a.at > since);
        self.asked.insert(young.unwrap_or_else(|| Asked::new(journal_seq, now))).clone()
    }

    /// The challenge whose answer decides about `verdict`; `true`: it is new. `journal_seq` is the session's.
    pub(super) fn ask(&mut self, verdict: Verdict, h: &Hello, journal_seq: u64, now: Timestamp) -> (Asked, bool) {
        let answers = self.answers || h.answers.is_some();
        let decides = |a: &Asked| verdict != Verdict::RolledBack || h.journal_seq < a.journal_seq;
        match self.asked.clone().filter(|a| a.within(YOUNG, now) && decides(a) && answers == self.answers) {
            Some(a) => (a, false),
            None => {
                let a = Asked::new(journal_seq, now);
                (self.asked, self.answers) = (Some(a.clone()), answers);
                (a, true)
            }
        }
    }

    /// A HELLO was taken that changed nothing. What was asked stands: of two machines with one identity, the one that is
    /// believed answers as well, and perhaps always first. Nothing else can be made of that answer, see `Asked::journal_seq`.
    pub(super) fn same(&mut self, h: &Hello, now: Timestamp) {
        self.answers |= h.answers.is_some();
        let stands = self.answers;
        self.asked = self.asked.take().filter(|a| stands && a.within(VALID, now));
    }

    /// A HELLO was taken that changed who is believed: what was asked is answered.
    pub(super) fn changed(&mut self, h: &Hello) {
        self.answers |= h.answers.is_some();
        self.asked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(journal_seq: u64, answers: Option<&str>) -> Hello {
        Hello {
            boot_id: "b".into(),
            journal_seq,
            version: "1".into(),
            open: vec![],
            facts: Value::Null,
            answers: answers.map(str::to_owned),
        }
    }
    fn at(seconds: i64) -> Timestamp {
        chrono::DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("time")
    }
    const WORSE: [Verdict; 3] = [Verdict::Replaces, Verdict::Cloned, Verdict::RolledBack];

    #[test]
    fn only_the_answer_to_what_was_asked_changes_anything() {
        let mut k = Kept { answers: true, ..Kept::default() };
        for v in WORSE {
            for answers in [None, Some(""), Some("guessed")] {
                assert!(!k.believes(v, &hello(3, answers), at(0)), "{v:?} {answers:?}");
            }
        }
        let (asked, new) = k.ask(Verdict::Cloned, &hello(3, Some("")), 7, at(0));
        assert!(new && asked.challenge.len() == 32);
        for v in WORSE {
            let answer = hello(3, Some(&asked.challenge));
            assert!(k.believes(v, &answer, at(119)), "{v:?}");
            assert!(!k.believes(v, &answer, at(120)), "{v:?}, too late");
            assert!(!k.believes(v, &answer, at(-1)), "{v:?}, from the future");
            for answers in [None, Some(""), Some("guessed")] {
                assert!(!k.believes(v, &hello(3, answers), at(1)), "{v:?} {answers:?}");
            }
        }
        // Held up on its way, it was overtaken by what the journal did since.
        assert!(!k.believes(Verdict::RolledBack, &hello(7, Some(&asked.challenge)), at(1)));
        k.changed(&hello(3, Some(&asked.challenge)));
        assert!(!k.believes(Verdict::Cloned, &hello(3, Some(&asked.challenge)), at(1)), "an answer counts once");
    }

    #[test]
    fn what_was_asked_stands_while_it_can_decide() {
        let mut k = Kept::default();
        let (first, _) = k.ask(Verdict::Cloned, &hello(3, Some("")), 7, at(0));
        assert!(k.answers);
        for (v, seq, s) in [(Verdict::Cloned, 99, 1), (Verdict::Replaces, 1, 30), (Verdict::RolledBack, 6, 59)] {
            assert_eq!(k.ask(v, &hello(seq, Some("")), 9, at(s)), (first.clone(), false));
        }
        k.same(&hello(9, Some(&first.challenge)), at(59));
        assert_eq!(k.asked, Some(first.clone()));
        let (second, new) = k.ask(Verdict::RolledBack, &hello(8, Some("")), 9, at(59));
        assert!(new && second != first, "the first says nothing of a journal at 8");
        assert!(k.ask(Verdict::Cloned, &hello(8, None), 9, at(59 + 60)).1, "it is old");
        k.same(&hello(9, None), at(600));
        assert_eq!((k.asked, k.answers), (None, true));
    }

    #[test]
    fn an_agent_of_the_version_before_is_judged_as_before() {
        let (mut k, old) = (Kept::default(), hello(3, None));
        assert!(k.believes(Verdict::Replaces, &old, at(0)) && k.believes(Verdict::Cloned, &old, at(0)));
        assert!(!k.believes(Verdict::RolledBack, &old, at(0)));
        assert!(k.ask(Verdict::RolledBack, &old, 7, at(0)).1 && !k.answers);
        assert!(k.believes(Verdict::RolledBack, &old, at(1)));
        k.same(&hello(7, None), at(1));
        assert!(!k.believes(Verdict::RolledBack, &old, at(1)), "it was only late");
        // Once it can answer, it has to.
        k.same(&hello(7, Some("")), at(1));
        assert!(WORSE.iter().all(|v| !k.believes(*v, &old, at(1))));
    }

    #[test]
    fn a_list_is_complete_only_up_to_what_it_answers() {
        let mut k = Kept::default();
        assert_eq!(k.complete_since(&hello(3, None), at(5)), Some(at(5)), "of the version before");
        assert_eq!(k.complete_since(&hello(3, Some("")), at(5)), None);
        k.same(&hello(3, Some("")), at(5));
        assert_eq!(k.complete_since(&hello(3, None), at(5)), None, "once it can answer, it has to");
        let first = k.ask_since(at(4), 3, at(6));
        assert_eq!(k.ask_since(at(4), 3, at(7)), first, "a crowd does not outdate it");
        let answer = hello(3, Some(&first.challenge));
        assert_eq!(k.complete_since(&answer, at(8)), Some(at(6)), "not younger than the question");
        assert_eq!(k.complete_since(&answer, at(6 + 120)), None);
        assert_ne!(k.ask_since(at(6), 3, at(8)), first, "it says nothing of what was granted since");
        assert_eq!(k.complete_since(&answer, at(8)), None);
    }

    #[test]
    fn what_is_kept_is_read_again_and_no_agent_writes_it() {
        let mut k = Kept { replaced: vec!["a".into()], answers: true, ..Kept::default() };
        k.ask(Verdict::Cloned, &hello(3, None), 7, at(0));
        let said = serde_json::json!({ "os": "x", "_asked": 1, "_answers": 0, "_replaced": "z" });
        let mut facts = said.as_object().expect("a map").clone();
        k.write(&mut facts);
        assert_eq!((Kept::of(&facts.clone().into()), facts["os"].as_str()), (k, Some("x")));
        Kept::default().write(&mut facts);
        assert_eq!(Value::from(facts), serde_json::json!({ "os": "x", "_replaced": [] }));
        for none in [Value::Null, serde_json::json!([]), serde_json::json!({ "_asked": [], "_replaced": 7 })] {
            assert_eq!(Kept::of(&none), Kept::default());
        }
        let mut many = Kept::default();
        (0..20).for_each(|n| many.replace(n.to_string()));
        assert_eq!((many.replaced.len(), many.replaced.last().map(String::as_str)), (8, Some("19")));
    }
}

//! The causes that a diagnosis knows, each with what it means, what it is told from, and what to do.

use super::RepairKind;
use serde::{Deserialize, Serialize};

/// How bad a finding is; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something is broken, and stays so until it is mended.
    Fault,
    /// A person is needed.
    Action,
    /// It takes its time, and goes on by itself.
    Wait,
    /// Nothing is wrong.
    Fine,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Fault => "fault",
            Severity::Action => "action",
            Severity::Wait => "wait",
            Severity::Fine => "fine",
        }
    }
}

/// Why a deployment does not go on. The names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    CommandUndecided,
    NotLookedAt,
    ResultNotApplied,
    NoExecutor,
    ExecutorsFull,
    ExecutorDead,
    BrokerAway,
    EventsNotRelayed,
    EventsNotTaken,
    ClockSkew,
    AgentMissing,
    AgentRevoked,
    AgentQuarantined,
    AgentSilent,
    SshUnreachable,
    OfferUnanswered,
    HostLocked,
    HostBusy,
    HostsUnknown,
    TrafficStuck,
    LockHeldByEnded,
    WaitsForPerson,
    ApprovalImpossible,
    PlanImpossible,
    Marked,
    Held,
    Queued,
    Turn,
    Timed,
    Working,
    Ended,
}

/// What a cause means for people.
struct About {
    name: &'static str,
    severity: Severity,
    title: &'static str,
    means: &'static str,
    told_from: &'static str,
    remedy: &'static str,
    repair: Option<RepairKind>,
}

impl Cause {
    pub const ALL: [Cause; 31] = [
        Cause::CommandUndecided,
        Cause::NotLookedAt,
        Cause::ResultNotApplied,
        Cause::NoExecutor,
        Cause::ExecutorsFull,
        Cause::ExecutorDead,
        Cause::BrokerAway,
        Cause::EventsNotRelayed,
        Cause::EventsNotTaken,
        Cause::ClockSkew,
        Cause::AgentMissing,
        Cause::AgentRevoked,
        Cause::AgentQuarantined,
        Cause::AgentSilent,
        Cause::SshUnreachable,
        Cause::OfferUnanswered,
        Cause::HostLocked,
        Cause::HostBusy,
        Cause::HostsUnknown,
        Cause::TrafficStuck,
        Cause::LockHeldByEnded,
        Cause::WaitsForPerson,
        Cause::ApprovalImpossible,
        Cause::PlanImpossible,
        Cause::Marked,
        Cause::Held,
        Cause::Queued,
        Cause::Turn,
        Cause::Timed,
        Cause::Working,
        Cause::Ended,
    ];

    pub fn as_str(self) -> &'static str {
        self.about().name
    }
    pub fn severity(self) -> Severity {
        self.about().severity
    }
    /// One line.
    pub fn title(self) -> &'static str {
        self.about().title
    }
    /// What it means.
    pub fn means(self) -> &'static str {
        self.about().means
    }
    /// The facts it is told from.
    pub fn told_from(self) -> &'static str {
        self.about().told_from
    }
    /// What to do.
    pub fn remedy(self) -> &'static str {
        self.about().remedy
    }
    /// What a repair can do about it.
    pub fn repair(self) -> Option<RepairKind> {
        self.about().repair
    }

    fn about(self) -> About {
        use RepairKind as R;
        use Severity::{Action, Fault, Fine, Wait};
        let about = |name, severity, title, means, told_from, remedy, repair| About {
            name,
            severity,
            title,
            means,
            told_from,
            remedy,
            repair,
        };
        match self {
            Cause::CommandUndecided => about(
                "command_undecided",
                Fault,
                "a command is stored and nobody decides it",
                "Somebody pressed a button and the scheduler has not looked at it: it does not run, it cannot reach the database, or the doorbell was lost and its poll has not come round.",
                "The command's row in the queue, its verb, who sent it and when.",
                "Ring the scheduler again (repair). If the command is still there after ten seconds, start the scheduler or see its log.",
                Some(R::RingScheduler),
            ),
            Cause::NotLookedAt => about(
                "not_looked_at",
                Fault,
                "its time has come and nobody looked at it",
                "A start time, the end of a bake, a retry or a free lock makes it due, and the scheduler has not moved it.",
                "The time at which it had to be looked at, beside the database's clock.",
                "Ring the scheduler for it (repair). If that changes nothing, start the scheduler or see its log.",
                Some(R::Look),
            ),
            Cause::ResultNotApplied => about(
                "result_not_applied",
                Fault,
                "a work is done and its result was not taken",
                "An executor settled a work and the scheduler has not applied what came out.",
                "The work with the version of its result and the version that was applied, and when it was settled.",
                "Ring the scheduler for it (repair). If that changes nothing, start the scheduler or see its log.",
                Some(R::Look),
            ),
            Cause::NoExecutor => about(
                "no_executor",
                Fault,
                "no executor serves its pool",
                "A work is ready, nobody has claimed it, and no executor holds any work of that pool: none runs, or none that runs serves the pool.",
                "The work, when it was made, its pool, and that no claim of the pool is alive.",
                "Start an executor with this pool in `executor.pools`. Ringing the pool again (repair) helps only where one runs and missed the doorbell.",
                Some(R::RingPool),
            ),
            Cause::ExecutorsFull => about(
                "executors_full",
                Wait,
                "the executors of its pool have no room",
                "A work is ready and nobody has claimed it, though executors of the pool are alive with other works.",
                "The work, when it was made, and when a claim of the pool was last renewed.",
                "Wait, start another executor for the pool, or raise `executor.max_works`.",
                Some(R::RingPool),
            ),
            Cause::ExecutorDead => about(
                "executor_dead",
                Fault,
                "the executor that had its work is gone",
                "The claim on a work was not renewed and has run out by the database's clock. Another executor of the pool takes it by itself when it looks next.",
                "The work, who claimed it, and when the claim ran out.",
                "Give the work back to its pool and ring it (repair): whoever held it can write nothing any more. If nobody takes it, start an executor of the pool.",
                Some(R::ReleaseClaims),
            ),
            Cause::BrokerAway => about(
                "broker_away",
                Fault,
                "NATS is not connected",
                "Doorbells are not heard, so everything waits for the next poll, and hosts cannot be reached.",
                "The api's own connection.",
                "Start NATS, or see `nats.urls` and the credentials. Nothing is lost meanwhile.",
                None,
            ),
            Cause::EventsNotRelayed => about(
                "events_not_relayed",
                Fault,
                "events wait to be published",
                "What happened is stored and has not gone out: notifications and live views are late, outside systems hear nothing. The deployment itself does not wait for it.",
                "How many events wait, and since when the oldest does.",
                "See NATS and the streams (`windlass doctor`); publish what waits now (repair).",
                Some(R::Relay),
            ),
            Cause::EventsNotTaken => about(
                "events_not_taken",
                Fault,
                "the notifier or the auditor does not keep up",
                "Events are not told to people, or are not signed yet. The deployment itself does not wait for it.",
                "Which service, how many events wait, and since when the oldest does.",
                "Start the service, or see its log.",
                None,
            ),
            Cause::ClockSkew => about(
                "clock_skew",
                Fault,
                "a clock is wrong",
                "The api's clock and the database's differ, so times that people read and times that decide are not the same.",
                "The difference in seconds.",
                "Run a time service (chrony, systemd-timesyncd) on both machines.",
                None,
            ),
            Cause::AgentMissing => about(
                "agent_missing",
                Action,
                "a host has no agent",
                "A task is for a host on which no agent was ever enrolled, or one that never said a word.",
                "The hosts, and whether an agent was enrolled.",
                "Install and enroll the agent (`windlass enroll HOST`), or take the host out (`windlass exclude`).",
                None,
            ),
            Cause::AgentRevoked => about(
                "agent_revoked",
                Action,
                "a host's agent was revoked",
                "The identity of the host's agent was withdrawn and no other was enrolled.",
                "The hosts, and when the agent was revoked.",
                "Enroll the host anew (`windlass enroll HOST`), or take it out (`windlass exclude`).",
                None,
            ),
            Cause::AgentQuarantined => about(
                "agent_quarantined",
                Action,
                "a host's agent is not believed",
                "Two machines spoke with one identity, or a journal went backwards: nothing this agent says counts.",
                "The hosts, and why the agent was put aside.",
                "Find out which machine is the right one, revoke the agent, and enroll the host anew.",
                None,
            ),
            Cause::AgentSilent => about(
                "agent_silent",
                Fault,
                "a host's agent is not connected",
                "The agent was heard of before and is silent: the machine, its network or the agent is down.",
                "The hosts, and when each was last heard of.",
                "See the machine and `windlass-agent` on it. A task that was not granted is given up by itself; a granted one becomes unknown.",
                None,
            ),
            Cause::SshUnreachable => about(
                "ssh_unreachable",
                Fault,
                "a host cannot be reached by SSH",
                "The last connection that an executor tried failed.",
                "The hosts, when it was tried, and what SSH said.",
                "Do what the message says: network, host key, account or key.",
                None,
            ),
            Cause::OfferUnanswered => about(
                "offer_unanswered",
                Fault,
                "a host does not answer an offer",
                "The task was offered to an agent that is connected, and it neither took nor refused it. Nothing has started there; the offer is withdrawn by itself in the end.",
                "The hosts, and since when the offer stands.",
                "Ring the pool so that the offer is sent again (repair); see the agent's log on the host.",
                Some(R::RingPool),
            ),
            Cause::HostLocked => about(
                "host_locked",
                Action,
                "a host is locked",
                "A person said that the host takes no new tasks.",
                "Who locked it, when and why.",
                "Unlock it (`windlass hosts unlock HOST`), or take it out (`windlass exclude`). After `executor.host_wait_s` it counts as not started.",
                None,
            ),
            Cause::HostBusy => about(
                "host_busy",
                Wait,
                "a host is busy",
                "The host runs as many tasks as it takes at once.",
                "How many tasks run there, how many it takes, and of which deployments.",
                "Wait for them, or raise the host's `max_tasks`.",
                None,
            ),
            Cause::HostsUnknown => about(
                "hosts_unknown",
                Action,
                "nobody knows what hosts did",
                "A task was granted and its host went silent. It may still run there. The environment stays locked until that is settled.",
                "The hosts, the task's last word, and how the agent stands now.",
                "Bring the host back: its agent reports by itself. If it never will, see to it that nothing runs there and answer for it (`windlass override`).",
                None,
            ),
            Cause::TrafficStuck => about(
                "traffic_stuck",
                Fault,
                "a host does not leave the load balancer, or does not come back",
                "Its connections do not go, the members left would be too few, or it does not become healthy.",
                "The hosts, where each stands since when, and what it waits for.",
                "Look at the load balancer and the host's connections. The drain ends by itself at its timeout.",
                None,
            ),
            Cause::LockHeldByEnded => about(
                "lock_held_by_ended",
                Action,
                "an ended deployment keeps the environment because of unknown hosts",
                "A deployment before this one has ended, and what some of its hosts did is not known; they may still run.",
                "The deployment that holds the lock, since when, and its unknown hosts.",
                "Settle or answer for the unknown hosts of that deployment (`windlass doctor run` on it says how they stand).",
                None,
            ),
            Cause::WaitsForPerson => about(
                "waits_for_person",
                Action,
                "it waits for a person",
                "Only a person can bring it forward.",
                "What is asked, since when, until when, and who answers for it.",
                "Claim it (`windlass claim`) and do what is asked, or tell its owner.",
                None,
            ),
            Cause::ApprovalImpossible => about(
                "approval_impossible",
                Fault,
                "nobody can give an approval it needs",
                "Fewer people may approve than the rule asks for: they are not there, lack the right, or requested it themselves.",
                "The rule, how many are missing, and why each person does not count.",
                "Give people the role (`windlass person grant`), change the policy and request anew, or let somebody else request it.",
                None,
            ),
            Cause::PlanImpossible => about(
                "plan_impossible",
                Fault,
                "its plan cannot be made any more",
                "The catalog changed since it was requested, so that it can no longer be planned. It stays where it is until it expires.",
                "What planning says.",
                "Mend the catalog, or cancel it.",
                None,
            ),
            Cause::Marked => about(
                "marked",
                Action,
                "a veto or a pin keeps its version out",
                "A person said that this version must not be released here, or that another one must stay.",
                "Who said so, when and why.",
                "Remove it (`windlass unveto`, `windlass unpin`), or cancel the deployment.",
                None,
            ),
            Cause::Held => about(
                "held",
                Action,
                "automation is held in its environment",
                "What hooks and promotions request is not released here until a person releases the hold. What people request is.",
                "Who set it, when and why, and who requested the deployment.",
                "Release it (`windlass hold release`), or request the deployment as a person.",
                None,
            ),
            Cause::Queued => about(
                "queued",
                Wait,
                "others are ahead of it",
                "One deployment at a time runs in an environment.",
                "Who holds the environment since when and what that one waits for, and who is ahead.",
                "Wait, or see what the deployment ahead waits for (`windlass doctor run` on it).",
                None,
            ),
            Cause::Turn => about(
                "turn",
                Wait,
                "its turn in its bundle has not come",
                "The bundle starts its members in order.",
                "The bundle and the name of the member.",
                "See the bundle (`windlass bundle show`).",
                None,
            ),
            Cause::Timed => about(
                "timed",
                Wait,
                "it waits for a time",
                "A start time, a bake, probes, a retry or the next run of a repeated step.",
                "What for, and until when.",
                "Wait.",
                None,
            ),
            Cause::Working => about(
                "working",
                Fine,
                "it works",
                "Nothing is wrong: hosts or central steps run, and an executor carries them.",
                "The works, who carries them and how long the claims hold; the hosts that run, since when.",
                "Nothing.",
                None,
            ),
            Cause::Ended => about(
                "ended",
                Fine,
                "it has ended",
                "Nothing of it runs, and it holds nothing.",
                "How and when it ended.",
                "Nothing.",
                None,
            ),
        }
    }
}

//! Latches: they keep a decision and the word it depends on apart, where no row does.
//!
//! A transaction that decides by what others may be writing (a grant by locks of hosts, a start by the catalog, an approval by
//! rights) *shares* the latch before it reads; one that changes what is decided by *takes* it before it writes. So once such a
//! change has committed, and its answer has gone out, nothing is decided without it; and of two changes that look at the same
//! whole, the second sees what the first one did.
//!
//! A latch is held until its transaction ends. Who takes one does so before it locks rows that a sharer may want, so that nobody
//! waits in a circle. PostgreSQL has advisory locks for it; SQLite has one writer, which is all of them.

use crate::{Dialect, Error, Tx, sql};

/// What is decided by many and changed by few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latch {
    /// Which host takes a task: no two executors give away the same place. Always taken, never shared.
    Offers,
    /// Whether a host may begin: changed by who locks hosts and revokes agents.
    Grants,
    /// What the catalog says, as a whole: changed by every save.
    Catalog,
    /// Who may do what: changed with people, grants and tokens.
    Access,
}

impl Latch {
    /// Any numbers that no other advisory lock of the database has: "wind" and two letters.
    fn key(self) -> i64 {
        let name = match self {
            Latch::Offers => *b"of",
            Latch::Grants => *b"gr",
            Latch::Catalog => *b"ca",
            Latch::Access => *b"ac",
        };
        0x7769_6e64_0000 | i64::from(u16::from_be_bytes(name))
    }
}

/// Waits until nobody holds or shares the latch, and holds it until the transaction ends.
pub async fn take(tx: &mut Tx, latch: Latch) -> Result<(), Error> {
    lock(tx, "SELECT pg_advisory_xact_lock($1)", latch).await
}

/// Waits until nobody holds the latch; until the transaction ends nobody takes it.
pub async fn share(tx: &mut Tx, latch: Latch) -> Result<(), Error> {
    lock(tx, "SELECT pg_advisory_xact_lock_shared($1)", latch).await
}

async fn lock(tx: &mut Tx, statement: &'static str, latch: Latch) -> Result<(), Error> {
    if tx.dialect() == Dialect::Postgres {
        sql(statement).bind(latch.key()).execute(tx).await?;
    }
    Ok(())
}

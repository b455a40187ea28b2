//! From the catalog to a plan; it lives in the store, because the api shows the same plan before anything is requested.

pub(crate) use windlass_store::planning::{Ask, Planned, Snapshot, Unplannable, of, of_release, prepare, undoing};

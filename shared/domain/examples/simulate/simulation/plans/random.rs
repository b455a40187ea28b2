//! The generator of random graphs that the unit tests of deployments use, shared and not repeated.

#[path = "../../../../src/deployment/tests/random/maker.rs"]
mod maker;

pub(in super::super) fn plan_of(bytes: &[u8]) -> super::PlanFacts {
    maker::graph_of(bytes)
}

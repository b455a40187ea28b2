//! Release + environment + hosts to [`Plan`](super::Plan).
#[derive(Debug)]
pub struct BuildInput;
#[derive(Debug)]
pub struct PlanError;
pub fn build(_i: BuildInput) -> Result<super::Plan, PlanError> {
    Err(PlanError)
}

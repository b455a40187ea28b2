//! Multi-document YAML to [`Item`](super::Item)s.
#[derive(Debug)]
pub struct Document;
#[derive(Debug)]
pub struct ReadError;
pub fn read(_s: &str) -> Result<Vec<Document>, ReadError> {
    Err(ReadError)
}

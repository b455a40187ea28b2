//! The journal of a Windows host: the agent's records, a line each, kept by the far half. A line is the CRC-32C of what
//! follows in eight hex digits, a blank, the entry as JSON. A last line without its end was never followed by a promise.

use crate::ssh::Fault;
use windlass_agent::journal::{Entry, Record};
use windlass_domain::Timestamp;

/// More than this is read by nobody: it would be tens of thousands of tasks.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// What is known of the journal on the host.
#[derive(Debug, PartialEq)]
pub(super) struct Journal {
    /// Bytes of whole lines.
    pub(super) bytes: u64,
    pub(super) seq: u64,
    pub(super) instance: String,
}

/// The entries, oldest first, and the length of the whole lines.
pub(super) fn read(bytes: &[u8]) -> Result<(Vec<Entry>, u64), Fault> {
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let mut entries: Vec<Entry> = Vec::new();
    let mut at = 0;
    for line in bytes[..whole].split_inclusive(|b| *b == b'\n') {
        let body = &line[..line.len() - 1];
        let entry = body.split_first_chunk::<9>().and_then(|(head, json)| {
            let crc = u32::from_str_radix(std::str::from_utf8(head.strip_suffix(b" ")?).ok()?, 16).ok()?;
            (crc32c::crc32c(json) == crc).then(|| serde_json::from_slice::<Entry>(json).ok())?
        });
        let Some(entry) = entry.filter(|e| entries.last().is_none_or(|last| e.seq > last.seq)) else {
            return Err(Fault::Journal { offset: at });
        };
        entries.push(entry);
        at += line.len() as u64;
    }
    if !matches!(entries.first(), None | Some(Entry { r: Record::Created { .. }, .. })) {
        return Err(Fault::Journal { offset: 0 });
    }
    Ok((entries, whole as u64))
}

/// Records as the lines that follow `seq`; the new last number.
pub(super) fn write(records: Vec<Record>, seq: u64, now: Timestamp) -> Result<(Vec<u8>, u64), serde_json::Error> {
    let (mut out, mut seq) = (Vec::new(), seq);
    for r in records {
        seq += 1;
        let json = serde_json::to_vec(&Entry { seq, at: now, r })?;
        out.extend_from_slice(format!("{:08x} ", crc32c::crc32c(&json)).as_bytes());
        out.extend_from_slice(&json);
        out.push(b'\n');
    }
    Ok((out, seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> (Vec<u8>, Vec<Record>) {
        let task = uuid::Uuid::from_u128(7).into();
        let records = vec![
            Record::Created { instance: "i".into() },
            Record::Intent { task, epoch: 3, boot_id: "b\n\u{FDD0}".into() },
            Record::Acked { task },
        ];
        (write(records.clone(), 0, chrono::Utc::now()).expect("writes").0, records)
    }

    #[test]
    fn what_was_written_reads_back_and_a_torn_end_is_left_out() {
        let (bytes, records) = some();
        let ends: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] == b'\n').map(|i| i + 1).collect();
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|e| **e <= cut).count();
            let (entries, good) = read(&bytes[..cut]).expect("a torn end is no damage");
            assert_eq!(entries.iter().map(|e| e.r.clone()).collect::<Vec<_>>(), records[..whole], "cut at {cut}");
            assert_eq!(good as usize, if whole == 0 { 0 } else { ends[whole - 1] });
        }
    }

    #[test]
    fn every_flipped_byte_within_is_damage() {
        let (bytes, _) = some();
        for i in 0..bytes.len() - 1 {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert!(matches!(read(&bad), Err(Fault::Journal { .. })), "byte {i}");
        }
        // Lines that were lost, or doubled.
        let second = bytes.iter().position(|b| *b == b'\n').expect("a line") + 1;
        assert!(read(&bytes[second..]).is_err());
        assert!(read(&[bytes.clone(), bytes].concat()).is_err());
    }
}

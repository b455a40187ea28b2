//! What comes over the network between the parts: signed frames, CloudEvents, the byte stream of hosts reached by SSH.

use crate::{choice, plant::planted};
use nkeys::{KeyPair, KeyPairType};
use serde::{Serialize, de::DeserializeOwned};
use std::{cell::LazyCell, fmt::Debug};
use windlass_contracts::{
    envelope::CloudEvent,
    frames::{self, Down, FrameError, MAX_FRAME, Up},
    stdio::{Decoder, Kind, MAGIC, StreamError, encode},
};

thread_local! {
    static KEY: LazyCell<KeyPair> =
        LazyCell::new(|| KeyPair::new_from_raw(KeyPairType::User, [7; 32]).expect("32 bytes are a seed"));
}

/// The bytes are the body of a frame, which is signed here; and, as they are, a frame that nobody signed.
///
/// Nothing unsigned or changed opens; what opens is written and read again without a difference.
pub(crate) fn frame(bytes: &[u8]) {
    KEY.with(|key| {
        assert!(
            frames::open::<Up>(bytes, key).is_err() && frames::open::<Down>(bytes, key).is_err(),
            "nobody signed it"
        );
        let mut whole = b"WF1".to_vec();
        whole.extend(key.sign(bytes).expect("a seed signs"));
        whole.extend_from_slice(bytes);
        both_ways::<Up>(&whole, key);
        both_ways::<Down>(&whole, key);
        let at = bytes.iter().fold(bytes.len(), |n, b| n.wrapping_mul(31).wrapping_add(usize::from(*b))) % whole.len();
        whole[at] ^= 1 << (bytes.len() % 8);
        // The plant: a reader that looks at the signature's first half only.
        let opened =
            if planted() && (35..67).contains(&at) { Ok(()) } else { frames::open::<Up>(&whole, key).map(drop) };
        assert!(matches!(opened, Err(FrameError::Signature | FrameError::Shape)), "byte {at} was changed: {opened:?}");
    });
}

fn both_ways<T: Serialize + DeserializeOwned + PartialEq + Debug>(whole: &[u8], key: &KeyPair) {
    let Ok(first) = frames::open::<T>(whole, key) else { return };
    match frames::seal(&first, key) {
        Ok(again) => assert_eq!(frames::open::<T>(&again, key).expect("our own frame"), first),
        // Defaults and escapes can make the body longer than it came.
        Err(e) => assert!(matches!(e, FrameError::TooLarge(n) if n > MAX_FRAME), "{e:?}"),
    }
}

/// The bytes are a `CloudEvent`. Writing and reading it again loses nothing, extensions of others included.
pub(crate) fn envelope(bytes: &[u8]) {
    let Ok(event) = serde_json::from_slice::<CloudEvent>(bytes) else { return };
    let mut written = serde_json::to_value(&event).expect("writes");
    // The plant: an attribute this program does not know is dropped.
    if planted()
        && let Some(o) = written.as_object_mut()
    {
        o.retain(|k, _| ["specversion", "id", "source", "type", "subject", "time", "data"].contains(&k.as_str()));
    }
    let text = written.to_string();
    assert_eq!(serde_json::from_str::<CloudEvent>(&text).expect("reads its own"), event);
}

/// First byte: the side that reads and the size of the pieces. The rest is a byte stream.
///
/// However the stream is cut, the same messages come; written again they are the bytes they were read from; none is larger
/// than a frame.
pub(crate) fn stdio(bytes: &[u8]) {
    let (how, stream) = choice(bytes);
    let decoder = || if how & 1 == 0 { Decoder::plain() } else { Decoder::after_magic() };
    let size = usize::from(how >> 1) + 1;
    let (whole, end) = all(decoder(), std::iter::once(stream));
    let pieces = stream.chunks(size);
    // The plant: a piece of three bytes is taken for noise.
    let pieces: Vec<&[u8]> = if planted() { pieces.filter(|p| p.len() != 3).collect() } else { pieces.collect() };
    let (cut, end_of_cut) = all(decoder(), pieces.into_iter());
    assert_eq!(whole, cut, "pieces of {size}");
    // How much noise came before it was refused may differ; that it was refused may not.
    assert!(
        end == end_of_cut
            || matches!((&end, &end_of_cut), (Some(StreamError::Noise(_)), _) | (_, Some(StreamError::Noise(_))))
    );
    let written: Vec<u8> = whole.iter().flat_map(|(k, p)| encode(*k, p)).collect();
    let from = if how & 1 == 0 {
        Some(0)
    } else {
        stream.windows(MAGIC.len()).position(|w| w == MAGIC).map(|at| at + MAGIC.len())
    };
    assert!(whole.is_empty() || from.is_some_and(|from| stream[from..].starts_with(&written)));
    assert!(whole.iter().all(|(_, payload)| payload.len() <= MAX_FRAME));
}

type Messages = Vec<(Kind, Vec<u8>)>;

fn all<'b>(mut d: Decoder, pieces: impl Iterator<Item = &'b [u8]>) -> (Messages, Option<StreamError>) {
    let mut out = Vec::new();
    for p in pieces {
        d.push(p);
        loop {
            match d.next_message() {
                Ok(Some(m)) => out.push(m),
                Ok(None) => break,
                Err(e) => return (out, Some(e)),
            }
        }
    }
    (out, None)
}

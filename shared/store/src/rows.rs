//! Statements over many rows at once: one trip to the database instead of one a row.

use std::fmt::Write;

/// Most rows of one statement. For each parameter SQLite is asked its name, and it looks that up among all of them: larger pieces
/// cost more than the trips they save.
const MOST: usize = 16;

/// The rows in pieces of 16, 8, … 1: a handful of texts to prepare, however many rows there are.
pub(crate) fn pieces<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
    let mut left = rows;
    std::iter::from_fn(move || {
        // The largest power of two that fits; none does into nothing.
        let n = 1 << left.len().min(MOST).checked_ilog2()?;
        let (piece, rest) = left.split_at(n);
        left = rest;
        Some(piece)
    })
}

/// `($1, $2), ($3, $4)`: places for that many rows of that many columns, after `before` places of the statement's own.
pub(crate) fn places(before: usize, columns: usize, rows: usize) -> String {
    let mut out = String::new();
    for row in 0..rows {
        out.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            let comma = if column == 0 { "" } else { ", " };
            let _ = write!(out, "{comma}${}", before + row * columns + column + 1);
        }
        out.push(')');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_powers_of_two_and_none_is_lost() {
        let rows: Vec<u32> = (0..59).collect();
        let sizes: Vec<usize> = pieces(&rows).map(<[u32]>::len).collect();
        assert_eq!(sizes, [16, 16, 16, 8, 2, 1]);
        assert_eq!(pieces(&rows).flatten().copied().collect::<Vec<_>>(), rows);
        assert_eq!(pieces(&[] as &[u32]).count(), 0);
        assert_eq!(places(1, 2, 2), "($2, $3), ($4, $5)");
    }
}

//! Expressions: CEL inside `${{ }}` and `if:`, total and without side effects.

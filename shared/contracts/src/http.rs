//! HTTP request and response bodies of `/api/v1`.

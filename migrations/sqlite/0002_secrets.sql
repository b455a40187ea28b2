-- Where secrets live (`secrets`, writer: api). Scopes, the innermost first: `host/<h>`, `environment/<p>/<e>`, `project/<p>`,
-- `group/<g>`; besides `channel`, and `deployment/<id>` for values that were given as secret inputs, which go when the
-- deployment has ended.
--
-- A secret is a value sealed here, or a place in HashiCorp Vault: then `sealed` is empty and `vault` is `<path>#<key>`.
ALTER TABLE secrets ADD COLUMN vault TEXT;

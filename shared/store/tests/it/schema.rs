//! The two migration folders make the same tables, columns, keys and indexes.

use std::collections::BTreeSet;
use windlass_store::{Dialect, Error, Store, schema, sql};
use windlass_testkit::{Db, databases};

/// Table, column, kind of value, may be NULL, part of the primary key.
type Column = (String, String, &'static str, bool, bool);

async fn columns(store: &Store) -> BTreeSet<Column> {
    let text = match store.dialect() {
        Dialect::Sqlite => {
            "SELECT m.name, p.name, p.type, p.\"notnull\" = 0, p.pk > 0
             FROM sqlite_master m JOIN pragma_table_info(m.name) p
             WHERE m.type = 'table' AND m.name NOT LIKE '\\_sqlx%' ESCAPE '\\' AND m.name NOT LIKE 'sqlite%'"
        }
        Dialect::Postgres => {
            "SELECT CAST(c.table_name AS TEXT), CAST(c.column_name AS TEXT), CAST(c.data_type AS TEXT), c.is_nullable = 'YES',
               EXISTS (SELECT 1 FROM information_schema.table_constraints t
                       JOIN information_schema.key_column_usage k USING (constraint_schema, constraint_name, table_name)
                       WHERE t.constraint_type = 'PRIMARY KEY' AND t.table_name = c.table_name AND k.column_name = c.column_name)
             FROM information_schema.columns c WHERE c.table_schema = 'public' AND c.table_name NOT LIKE '\\_sqlx%'"
        }
    };
    let mut c = store.read().await.expect("read");
    let rows: Vec<(String, String, String, bool, bool)> = sql(text).fetch_all(&mut c).await.expect("columns");
    rows.into_iter().map(|(t, c, kind, null, key)| (t, c, family(&kind), null && !key, key)).collect()
}

/// What both call the same.
fn family(kind: &str) -> &'static str {
    match kind.to_ascii_lowercase().as_str() {
        // SQLite keeps uuids and hashes as blobs, documents and times as text.
        "uuid" | "bytea" | "blob" => "bytes",
        "text" | "jsonb" | "timestamp with time zone" => "text",
        "bigint" | "integer" | "boolean" => "number",
        "double precision" | "real" => "real",
        other => panic!("a type that only one of the databases has: {other}"),
    }
}

async fn indexes(store: &Store) -> BTreeSet<(String, String)> {
    let text = match store.dialect() {
        Dialect::Sqlite => "SELECT tbl_name, name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        Dialect::Postgres => {
            "SELECT CAST(tablename AS TEXT), CAST(indexname AS TEXT) FROM pg_indexes i
             WHERE schemaname = 'public' AND tablename NOT LIKE '\\_sqlx%' AND NOT EXISTS
               (SELECT 1 FROM pg_constraint c WHERE c.conname = i.indexname)"
        }
    };
    let mut c = store.read().await.expect("read");
    let rows: Vec<(String, String)> = sql(text).fetch_all(&mut c).await.expect("indexes");
    rows.into_iter().collect()
}

#[tokio::test]
async fn both_databases_get_the_same_schema() {
    let mut seen = Vec::new();
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        // Opening a second time finds everything done.
        Store::open(db.url()).await.expect("opens again").close().await;
        seen.push((columns(&store).await, indexes(&store).await));
        store.close().await;
    }
    let (lite, pg) = (&seen[0], &seen[1]);
    assert!(lite.0.len() > 150, "only {} columns found", lite.0.len());
    let only = |a: &BTreeSet<Column>, b: &BTreeSet<Column>| a.difference(b).cloned().collect::<Vec<_>>();
    assert_eq!(only(&lite.0, &pg.0), [], "only in sqlite");
    assert_eq!(only(&pg.0, &lite.0), [], "only in postgres");
    assert_eq!(lite.1, pg.1);
}

/// What a later version of the program does to the schema while this one still runs, and is started again.
async fn later(store: &Store, least: i64) {
    let mut tx = store.write().await.expect("write");
    sql("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9001, 'later', TRUE, $1, 1)")
        .bind(vec![1u8])
        .execute(&mut tx)
        .await
        .expect("a migration of a later version");
    sql("ALTER TABLE artifacts ADD COLUMN later TEXT").execute(&mut tx).await.expect("adds a column");
    sql("UPDATE schema_floor SET least = $1").bind(least).execute(&mut tx).await.expect("the floor");
    tx.commit().await.expect("commits");
}

#[tokio::test]
async fn a_schema_with_more_in_it_is_used_until_it_says_that_it_does_not_fit() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        later(&store, schema::newest_known()).await;
        store.close().await;
        Store::open(db.url())
            .await
            .unwrap_or_else(|e| panic!("{db}: the version before cannot start again: {e}"))
            .close()
            .await;

        let store = Store::open(db.url()).await.expect("opens");
        let mut tx = store.write().await.expect("write");
        sql("UPDATE schema_floor SET least = 9001").execute(&mut tx).await.expect("the floor");
        tx.commit().await.expect("commits");
        store.close().await;
        let refused = Store::open(db.url()).await.expect_err("it needs what this program cannot");
        assert!(matches!(refused, Error::SchemaAhead { least: 9001, .. }), "{db}: {refused}");
    }
}

#[tokio::test]
async fn a_role_that_may_not_change_the_schema_says_what_is_missing() {
    let db = Db::postgres().await;
    let owner = Store::open(db.url()).await.expect("opens");
    let mut tx = owner.write().await.expect("write");
    let role = format!("plain_{}", uuid::Uuid::new_v4().simple());
    for text in [
        "DELETE FROM _sqlx_migrations WHERE version = 11".to_owned(),
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC".to_owned(),
        format!("CREATE ROLE {role} LOGIN"),
        format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"),
    ] {
        sql(sqlx::AssertSqlSafe(text)).execute(&mut tx).await.expect("prepares");
    }
    tx.commit().await.expect("commits");
    owner.close().await;
    let url = db.url().replace("postgres://windlass@", &format!("postgres://{role}@"));
    let refused = Store::open(&url).await.expect_err("a migration is missing");
    assert!(matches!(&refused, Error::SchemaBehind { missing } if *missing == [11]), "{refused}");
}

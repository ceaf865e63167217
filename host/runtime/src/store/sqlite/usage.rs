//! What was spent, in SQLite.

use super::{SqliteStore, signed, unsigned};
use crate::limiter::Window;
use crate::store::{Owner, Spent, StoreError, UsageStore};
use rusqlite::{OptionalExtension, params};

impl UsageStore for SqliteStore {
    fn usage(&self) -> Result<(u64, Vec<Spent>), StoreError> {
        self.with(|db| {
            let journal: Option<i64> = db
                .query_row("SELECT value FROM meta WHERE name = 'journal'", [], |row| row.get(0))
                .optional()?;
            let mut query = db.prepare("SELECT tenant, key, period, window, tokens FROM usage")?;
            let mut rows = query.query([])?;
            let mut spent = Vec::new();
            while let Some(row) = rows.next()? {
                let key: String = row.get(1)?;
                let period = row.get::<_, String>(2)?.parse();
                let period = period
                    .map_err(|_| StoreError::Damaged(format!("usage of key `{key}` has a bad period")))?;
                spent.push(Spent {
                    owner: Owner { tenant: row.get::<_, String>(0)?.into(), key: key.into() },
                    window: Window { period, number: row.get(3)? },
                    tokens: unsigned(row.get(4)?),
                });
            }
            Ok((journal.map_or(0, unsigned), spent))
        })
    }

    fn checkpoint(&self, journal: u64, spent: &[Spent]) -> Result<(), StoreError> {
        self.with(|db| {
            let step = db.transaction()?;
            step.execute("DELETE FROM usage", [])?;
            {
                let mut insert = step.prepare("INSERT INTO usage VALUES (?,?,?,?,?)")?;
                for Spent { owner, window, tokens } in spent {
                    let period = window.period.to_string();
                    insert.execute(params![
                        &*owner.tenant,
                        &*owner.key,
                        period,
                        window.number,
                        signed(*tokens)
                    ])?;
                }
            }
            step.execute("INSERT OR REPLACE INTO meta VALUES ('journal', ?)", params![signed(journal)])?;
            Ok(step.commit()?)
        })
    }
}

//! Keys in SQLite.

use super::{SqliteStore, signed, unsigned};
use crate::auth::{KeyInfo, KeyLimits, KeyRecord, Role, TokenBudget};
use crate::store::{KeyStore, StoreError};
use rusqlite::{Row, params};

const COLUMNS: &str = "id, tenant, name, role, hash, requests_per_minute, tokens, period, created_at, expires_at, \
                       revoked_at, last_used_at";

impl KeyStore for SqliteStore {
    fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.with(|db| {
            let mut query = db.prepare(&format!("SELECT {COLUMNS} FROM api_key ORDER BY created_at, id"))?;
            let mut rows = query.query([])?;
            let mut keys = Vec::new();
            while let Some(row) = rows.next()? {
                keys.push(read(row)?);
            }
            Ok(keys)
        })
    }

    fn add_key(&self, KeyRecord { info: key, hash }: &KeyRecord) -> Result<(), StoreError> {
        self.with(|db| {
            db.execute(
                &format!("INSERT INTO api_key ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"),
                params![
                    key.id,
                    &*key.tenant,
                    key.name,
                    key.role.name(),
                    hash.as_slice(),
                    key.limits.requests_per_minute,
                    key.limits.tokens.map(|budget| signed(budget.tokens)),
                    key.limits.tokens.map(|budget| budget.window.to_string()),
                    key.created_at,
                    key.expires_at,
                    key.revoked_at,
                    key.last_used_at,
                ],
            )?;
            Ok(())
        })
    }

    fn revoke_key(&self, tenant: &str, id: &str, at: i64) -> Result<bool, StoreError> {
        self.with(|db| {
            let changed = db.execute(
                "UPDATE api_key SET revoked_at = ? WHERE tenant = ? AND id = ? AND revoked_at IS NULL",
                params![at, tenant, id],
            )?;
            Ok(changed == 1)
        })
    }

    fn set_key_limits(&self, tenant: &str, id: &str, limits: &KeyLimits) -> Result<bool, StoreError> {
        self.with(|db| {
            let changed = db.execute(
                "UPDATE api_key SET requests_per_minute = ?, tokens = ?, period = ? WHERE tenant = ? AND id = ?",
                params![
                    limits.requests_per_minute,
                    limits.tokens.map(|budget| signed(budget.tokens)),
                    limits.tokens.map(|budget| budget.window.to_string()),
                    tenant,
                    id
                ],
            )?;
            Ok(changed == 1)
        })
    }

    fn touch_keys(&self, used: &[(String, i64)]) -> Result<(), StoreError> {
        self.with(|db| {
            let step = db.transaction()?;
            for (id, at) in used {
                step.execute("UPDATE api_key SET last_used_at = ? WHERE id = ?", params![at, id])?;
            }
            Ok(step.commit()?)
        })
    }
}

fn read(row: &Row<'_>) -> Result<KeyRecord, StoreError> {
    let id: String = row.get(0)?;
    let damaged = |what: &str| StoreError::Damaged(format!("key `{id}` has a bad {what}"));
    let role = Role::from_name(&row.get::<_, String>(3)?).ok_or_else(|| damaged("role"))?;
    let hash = row.get::<_, Vec<u8>>(4)?.try_into().map_err(|_| damaged("hash"))?;
    let (tokens, period): (Option<i64>, Option<String>) = (row.get(6)?, row.get(7)?);
    let tokens = match (tokens, period) {
        (Some(tokens), Some(period)) => {
            let window = period.parse().map_err(|_| damaged("period"))?;
            Some(TokenBudget { tokens: unsigned(tokens), window })
        }
        _ => None,
    };
    let info = KeyInfo {
        tenant: row.get::<_, String>(1)?.into(),
        name: row.get(2)?,
        role,
        limits: KeyLimits { requests_per_minute: row.get(5)?, tokens },
        created_at: row.get(8)?,
        expires_at: row.get(9)?,
        revoked_at: row.get(10)?,
        last_used_at: row.get(11)?,
        id,
    };
    Ok(KeyRecord { info, hash })
}

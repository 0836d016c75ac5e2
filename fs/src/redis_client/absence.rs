//! What is renewed outlives Redis's absence: heart-beats and leases expire by the clock, also while nobody could renew them.
//!
//! Takes part: who renews a key that expires notes it in `ks:renewed` (`commit.lua`, the executor's `common.lua`); every
//! connection that is made looks, before any command uses it, whether Redis was away (`absence.lua`).
//! What always holds: whoever lived when Redis went has his whole time again when it is back, so nobody takes him for
//! dead meanwhile, whoever comes first; who had died before, or left in order, stays gone.
use redis::Value;
use redis::aio::MultiplexedConnection;
use std::time::Duration;

/// Some node renews every two seconds: without any renewal for so long, Redis was away.
const AWAY: Duration = Duration::from_secs(4);

/// Gives those who lived their time again, where Redis was away. `run`: its `run_id`.
/// A Redis that cannot do it (a full disk, a replica) is told of by what is asked of it next.
pub(super) async fn make_good(connection: &mut MultiplexedConnection, run: &str) {
    let away = AWAY.as_millis().to_string();
    let mut command = redis::cmd("EVAL");
    command.arg(include_str!("absence.lua")).arg(0);
    command.arg(run).arg(away);
    let answer = connection.send_packed_command(&command).await;
    match answer.and_then(Value::extract_error) {
        Ok(Value::Int(0)) => {}
        Ok(count) => {
            tracing::info!(?count, "redis was away: heart-beats and leases run anew");
        }
        Err(error) => tracing::debug!(%error, "redis cannot let heart-beats run anew"),
    }
}

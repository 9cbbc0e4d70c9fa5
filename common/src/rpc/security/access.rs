use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::Token;
use crate::rpc::{ErrorCode, ServiceError};

/// Where the token travels.
const KEY: &str = "coati-token";

/// Puts the job's token on each request.
#[derive(Clone, Debug)]
pub struct Attach(Option<MetadataValue<Ascii>>);

impl Attach {
    pub(super) fn new(token: Option<&Token>) -> Self {
        Self(token.and_then(|token| {
            let mut value = MetadataValue::try_from(token.text()).ok()?;
            // Not shown by debugging output, not remembered by the connection's header compression.
            value.set_sensitive(true);
            Some(value)
        }))
    }
}

impl Interceptor for Attach {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert(KEY, value.clone());
        }
        Ok(request)
    }
}

/// Refuses requests without the job's token, before their body is read.
#[derive(Clone, Debug)]
pub struct Check {
    token: Option<Token>,
    /// So far, over all connections.
    refused: Arc<AtomicU64>,
}

impl Check {
    pub(super) fn new(token: Option<Token>) -> Self {
        Self {
            token,
            refused: Arc::default(),
        }
    }

    /// Whether who shows `shown` as a token, at this address, may go on.
    pub fn admit(&self, shown: Option<&[u8]>, from: Option<SocketAddr>) -> Result<(), ServiceError> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let carries = match shown.map(Token::parse) {
            Some(Some(found)) if found.is(token) => return Ok(()),
            Some(_) => "the token of another job",
            None => "no job token",
        };
        let error = refusal(from, carries);
        // A scanner may try for ever; the log stays readable.
        let before = self.refused.fetch_add(1, Ordering::Relaxed);
        if is_power_of_ten(before + 1) {
            tracing::warn!(refused = before + 1, "{}", error.message);
        }
        Err(error)
    }
}

impl Interceptor for Check {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let shown = request.metadata().get(KEY).map(MetadataValue::as_bytes);
        self.admit(shown, request.remote_addr())?;
        Ok(request)
    }
}

fn refusal(caller: Option<SocketAddr>, carries: &str) -> ServiceError {
    let caller = caller.map_or_else(|| "a caller".to_owned(), |address| address.to_string());
    ServiceError::new(
        ErrorCode::Unauthenticated,
        format!("refused: the call from {caller} carries {carries}"),
    )
    .with_hint(
        "tasks of a job share the token in <model_dir>/tls/token: is this a task of another job, or one that was started before the folder was made anew?",
    )
}

fn is_power_of_ten(mut count: u64) -> bool {
    while count >= 10 && count.is_multiple_of(10) {
        count /= 10;
    }
    count == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(check: &mut Check, attach: &mut Attach) -> Result<(), ServiceError> {
        let request = attach.call(Request::new(())).unwrap();
        check.call(request).map(|_| ()).map_err(ServiceError::from)
    }

    #[test]
    fn only_the_jobs_token_opens() {
        let token = Token::generate();
        let mut check = Check::new(Some(token.clone()));
        asked(&mut check, &mut Attach::new(Some(&token))).unwrap();
        let other = asked(&mut check, &mut Attach::new(Some(&Token::generate()))).unwrap_err();
        assert_eq!(other.code, ErrorCode::Unauthenticated);
        assert!(other.message.contains("carries the token of another job"), "{other}");
        let none = asked(&mut check, &mut Attach::new(None)).unwrap_err();
        assert!(
            none.message.contains("carries no job token") && !none.retryable,
            "{none}"
        );
        let text = refusal(Some(([10, 0, 0, 5], 4711).into()), "no job token").to_string();
        assert!(text.contains("10.0.0.5:4711") && text.contains("hint: "), "{text}");
    }

    #[test]
    fn a_token_of_another_form_is_refused_as_well() {
        let mut check = Check::new(Some(Token::generate()));
        for value in ["", "x", &"0".repeat(64), &"0".repeat(4000)] {
            let mut request = Request::new(());
            request
                .metadata_mut()
                .insert(KEY, MetadataValue::try_from(value.to_owned()).unwrap());
            check.call(request).unwrap_err();
        }
    }

    #[test]
    fn the_log_hears_of_the_first_the_tenth_the_hundredth() {
        let said: Vec<u64> = (1..=1000).filter(|&count| is_power_of_ten(count)).collect();
        assert_eq!(said, [1, 10, 100, 1000]);
    }
}

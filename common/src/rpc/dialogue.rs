//! Many calls of one kind, one after the other, on a stream that stays open.
//!
//! What is asked at each step of training costs less so: a call of its own begins with headers and ends with trailers, and goes through
//! half a dozen tasks on either side, each of which must be woken. A message of a stream that is there goes through two. It says what the
//! call's request says and gets the same answer, so whoever is asked need not know what came before, and a stream that broke is begun anew.

use std::pin::Pin;

use futures::{Stream, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};

use super::METADATA_KEY;

/// The asking side. Each question is answered before the next is asked.
#[derive(Debug)]
pub struct Dialogue<Q, A> {
    questions: mpsc::Sender<Q>,
    answers: Streaming<A>,
}

impl<Q: Clone + Send + 'static, A> Dialogue<Q, A> {
    /// Asks on the stream that is `held`, or on one that `begin` begins: also where the other side ended the one that is held after its
    /// last answer. It is held afterwards only if there was an answer: what comes after an error, or after a wait that was given up, could
    /// be the answer to another question.
    pub async fn ask<F>(
        held: &mut Option<Self>,
        begin: impl FnOnce(ReceiverStream<Q>) -> F,
        question: Q,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<Response<Streaming<A>>, Status>>,
    {
        if let Some(mut dialogue) = held.take()
            && let Some(answer) = dialogue.answer(question.clone()).await?
        {
            *held = Some(dialogue);
            return Ok(Response::new(answer));
        }
        let (questions, asked) = mpsc::channel(1);
        let answers = begin(ReceiverStream::new(asked)).await?.into_inner();
        let mut dialogue = Self { questions, answers };
        match dialogue.answer(question).await? {
            Some(answer) => {
                *held = Some(dialogue);
                Ok(Response::new(answer))
            }
            None => Err(Status::unavailable("the other side ended the stream")),
        }
    }

    /// None where the other side has ended the stream, or did not answer this question.
    async fn answer(&mut self, question: Q) -> Result<Option<A>, Status> {
        // If the other side has ended the stream, it may have said why.
        let sent = self.questions.send(question).await;
        let answer = self.answers.message().await.map_err(broken)?;
        Ok(answer.filter(|_| sent.is_ok()))
    }
}

/// What the transport says of a stream that broke can be said of a connection that is gone.
fn broken(status: Status) -> Status {
    let ours = status.metadata().get_bin(METADATA_KEY).is_some();
    if status.code() == Code::Internal && !ours {
        return Status::unavailable(status.message());
    }
    status
}

/// What the answering side sends.
pub type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// The answering side: answers each question before it looks at the next, until one of them is the last or an error, the caller ends the
/// stream, or `over` comes while nothing is asked.
pub fn answers<Q, A, F>(
    questions: Streaming<Q>,
    over: impl Future<Output = ()> + Send + 'static,
    is_last: fn(&A) -> bool,
    answer: impl FnMut(Q) -> F + Send + 'static,
) -> Answers<A>
where
    Q: Send + 'static,
    A: Send + 'static,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    let begun = Some((questions, answer, Box::pin(over)));
    Box::pin(stream::unfold(begun, move |state| async move {
        let (mut questions, mut answer, mut over) = state?;
        let question = tokio::select! {
            biased;
            question = questions.message() => question,
            () = &mut over => return None,
        };
        let answered = match question {
            Ok(Some(question)) => answer(question).await,
            Ok(None) => return None,
            Err(status) => Err(status),
        };
        let goes_on = answered.as_ref().is_ok_and(|answer| !is_last(answer));
        Some((answered, goes_on.then_some((questions, answer, over))))
    }))
}

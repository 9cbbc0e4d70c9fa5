//! From the environment to a client for a bucket: endpoints and the credentials that people have.
//!
//! What the usual tools of each cloud look at is looked at in their order. Where nothing is found and this machine is not the
//! cloud's own, requests are not signed: public buckets need no more.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as S3Key, S3ConditionalPut, resolve_bucket_region};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider};

use crate::external::Program;
use crate::gate::Gate;
use crate::location::{Location, Scheme};
use crate::profile;
use crate::retry::Connector;
use crate::runtime;
use crate::settings::SETTINGS;

/// A bucket that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    pub store: Arc<dyn ObjectStore>,
    /// What requests are signed with, in words.
    pub credentials: Arc<str>,
}

/// One client a bucket, for its connections and what is known of how much it bears.
static KNOWN: LazyLock<Mutex<HashMap<(Scheme, String), Bucket>>> = LazyLock::new(Mutex::default);

/// The client for a place.
pub(crate) fn bucket(location: &Location) -> io::Result<Bucket> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (location.scheme, location.bucket.clone());
    if let Some(bucket) = known.get(&key) {
        return Ok(bucket.clone());
    }
    let world = World {
        variable: &|name| std::env::var(name).ok().filter(|value| !value.is_empty()),
        file: &|path| std::fs::read_to_string(path).ok(),
    };
    let made = match location.scheme {
        Scheme::S3 => s3(&location.bucket, &world),
        Scheme::Gs => gs(&location.bucket, &world),
    };
    let bucket = made.map_err(|(what, hint)| {
        let text = format!("{location}: {what}\nhint: {hint}");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    tracing::debug!(bucket = location.bucket, credentials = %bucket.credentials, "object storage");
    known.insert(key, bucket.clone());
    Ok(bucket)
}

/// What decisions look at.
struct World<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    file: &'a dyn Fn(&Path) -> Option<String>,
}

impl World<'_> {
    fn variable(&self, name: &str) -> Option<String> {
        (self.variable)(name)
    }

    fn is_set(&self, name: &str) -> bool {
        self.variable(name).is_some()
    }

    fn is_true(&self, name: &str) -> bool {
        self.variable(name)
            .is_some_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes"))
    }

    fn home(&self, below: &str) -> PathBuf {
        PathBuf::from(self.variable("HOME").unwrap_or_default()).join(below)
    }

    /// Whether the machine says that it is this cloud's.
    fn machine_is(&self, name: &str) -> bool {
        ["sys_vendor", "product_name", "bios_vendor"]
            .iter()
            .any(|file| (self.file)(&Path::new("/sys/class/dmi/id").join(file)).is_some_and(|text| text.contains(name)))
    }
}

/// What is wrong, and what would be right.
type Refusal = (String, String);

fn options(endpoint: Option<&str>) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(endpoint.is_some_and(|url| url.starts_with("http://")))
        .with_connect_timeout(Duration::from_secs(10))
        // Of one attempt; a part of 8 MiB takes this long at 70 KB/s.
        .with_timeout(Duration::from_secs(120))
}

/// The client does not try again: requests already are, below it.
fn once() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        retry_timeout: Duration::from_secs(1),
        backoff: BackoffConfig::default(),
    }
}

fn connector() -> Connector {
    Connector {
        gate: Arc::new(Gate::new(SETTINGS.concurrency)),
        limit: SETTINGS.retry_for,
    }
}

/// How an S3 bucket is reached.
#[derive(Debug, PartialEq, Eq)]
struct S3Plan {
    credentials: String,
    anonymous: bool,
    keys: Vec<(S3Key, String)>,
    endpoint: Option<String>,
    region: Option<String>,
    /// Prints keys when a shell runs it.
    program: Option<String>,
}

fn plan_s3(world: &World<'_>) -> Result<S3Plan, Refusal> {
    let name = world
        .variable("AWS_PROFILE")
        .or_else(|| world.variable("AWS_DEFAULT_PROFILE"));
    let read = |variable: &str, file: &str| {
        let path = world.variable(variable).map_or_else(|| world.home(file), PathBuf::from);
        (world.file)(&path).unwrap_or_default()
    };
    let files = (
        read("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        read("AWS_CONFIG_FILE", ".aws/config"),
    );
    let found = profile::find(name.as_deref().unwrap_or("default"), &files.0, &files.1);
    if let (Some(name), None) = (&name, &found) {
        return Err((
            format!("AWS_PROFILE is `{name}`, and neither ~/.aws/credentials nor ~/.aws/config has such a profile"),
            "`aws configure list-profiles` shows those that there are".to_owned(),
        ));
    }
    let profile = found.unwrap_or_default();
    let endpoint = world
        .variable("AWS_ENDPOINT_URL_S3")
        .or_else(|| world.variable("AWS_ENDPOINT_URL"))
        .or_else(|| world.variable("AWS_ENDPOINT"))
        .or_else(|| profile.get("endpoint_url").cloned());
    let region = world
        .variable("AWS_REGION")
        .or_else(|| world.variable("AWS_DEFAULT_REGION"))
        .or_else(|| profile.get("region").cloned());
    let mut plan = S3Plan {
        credentials: String::new(),
        anonymous: false,
        keys: Vec::new(),
        endpoint,
        region,
        program: None,
    };
    let explicit = name.is_some();
    let from_profile = profile
        .get("aws_access_key_id")
        .zip(profile.get("aws_secret_access_key"));
    let shown = name.as_deref().unwrap_or("default");
    if world.is_true("AWS_SKIP_SIGNATURE") {
        "no credentials (AWS_SKIP_SIGNATURE)".clone_into(&mut plan.credentials);
        plan.anonymous = true;
    } else if world.is_set("AWS_ACCESS_KEY_ID") && (!explicit || from_profile.is_none()) {
        "AWS_ACCESS_KEY_ID of the environment".clone_into(&mut plan.credentials);
        for (key, name) in [
            (S3Key::AccessKeyId, "AWS_ACCESS_KEY_ID"),
            (S3Key::SecretAccessKey, "AWS_SECRET_ACCESS_KEY"),
            (S3Key::Token, "AWS_SESSION_TOKEN"),
        ] {
            plan.keys.extend(world.variable(name).map(|value| (key, value)));
        }
        if !world.is_set("AWS_SECRET_ACCESS_KEY") {
            return Err((
                "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not".to_owned(),
                "set both, or neither".to_owned(),
            ));
        }
    } else if let Some((id, secret)) = from_profile {
        plan.credentials = format!("the AWS profile `{shown}`");
        plan.keys.push((S3Key::AccessKeyId, id.clone()));
        plan.keys.push((S3Key::SecretAccessKey, secret.clone()));
        plan.keys.extend(
            profile
                .get("aws_session_token")
                .map(|token| (S3Key::Token, token.clone())),
        );
    } else if world.is_set("AWS_WEB_IDENTITY_TOKEN_FILE") && world.is_set("AWS_ROLE_ARN") {
        "the web identity of AWS_ROLE_ARN".clone_into(&mut plan.credentials);
    } else if world.is_set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || world.is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    {
        "the container's role".clone_into(&mut plan.credentials);
    } else if let Some(command) = profile.get("credential_process") {
        plan.credentials = format!("the credential_process of the AWS profile `{shown}`");
        plan.program = Some(command.clone());
    } else if ["sso_session", "sso_start_url", "role_arn"]
        .iter()
        .any(|key| profile.contains_key(*key))
    {
        plan.credentials = format!("what `aws` says of the AWS profile `{shown}`");
        plan.program = Some(format!("aws configure export-credentials --profile {}", quoted(shown)));
    } else if world.is_set("AWS_METADATA_ENDPOINT") || world.machine_is("Amazon EC2") {
        "the instance's role".clone_into(&mut plan.credentials);
    } else {
        "no credentials (none in the environment, no AWS profile, no role)".clone_into(&mut plan.credentials);
        plan.anonymous = true;
    }
    Ok(plan)
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn s3(name: &str, world: &World<'_>) -> Result<Bucket, Refusal> {
    let plan = plan_s3(world)?;
    let options = options(plan.endpoint.as_deref());
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .with_client_options(options.clone())
        .with_retry(once())
        .with_http_connector(connector())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_skip_signature(plan.anonymous);
    let region = match plan.region {
        Some(region) => Some(region),
        // Buckets tell their region to anybody; a wrong guess would be answered by a redirect that nobody understands.
        None if plan.endpoint.is_none() => {
            let name = name.to_owned();
            let asked = runtime::block(async move {
                tokio::time::timeout(Duration::from_secs(10), resolve_bucket_region(&name, &options)).await
            });
            asked.ok().and_then(Result::ok).and_then(Result::ok)
        }
        None => None,
    };
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = plan.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    for (key, value) in plan.keys {
        builder = builder.with_config(key, value);
    }
    if let Some(program) = plan.program {
        let hint =
            "`aws sso login` begins a session anew; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY do without the program";
        builder = builder.with_credentials(Arc::new(Program::new(program, hint.to_owned())));
    }
    finish(builder.build().map(|store| Arc::new(store) as _), plan.credentials)
}

fn finish(store: object_store::Result<Arc<dyn ObjectStore>>, credentials: String) -> Result<Bucket, Refusal> {
    match store {
        Ok(store) => Ok(Bucket {
            store,
            credentials: credentials.into(),
        }),
        Err(error) => Err((error.to_string(), format!("the credentials are {credentials}"))),
    }
}

/// How a bucket of Google's is reached.
#[derive(Debug, PartialEq, Eq)]
enum Gs {
    /// With a token, from somewhere else.
    Token(String),
    ServiceAccount(PathBuf),
    ServiceAccountKey(String),
    /// `gcloud auth application-default login`, or what `GOOGLE_APPLICATION_CREDENTIALS` names.
    Default(PathBuf),
    Instance,
    Anonymous,
}

fn plan_gs(world: &World<'_>) -> (Gs, String) {
    let default = world
        .variable("CLOUDSDK_CONFIG")
        .map_or_else(|| world.home(".config/gcloud"), PathBuf::from)
        .join("application_default_credentials.json");
    if world.is_true("GOOGLE_SKIP_SIGNATURE") {
        return (Gs::Anonymous, "no credentials (GOOGLE_SKIP_SIGNATURE)".to_owned());
    }
    for name in ["GOOGLE_OAUTH_ACCESS_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN"] {
        if let Some(token) = world.variable(name) {
            return (Gs::Token(token), format!("the token in {name}"));
        }
    }
    for name in ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"] {
        if let Some(path) = world.variable(name) {
            return (
                Gs::ServiceAccount(path.into()),
                format!("the service account in {name}"),
            );
        }
    }
    if let Some(key) = world.variable("GOOGLE_SERVICE_ACCOUNT_KEY") {
        let words = "the service account in GOOGLE_SERVICE_ACCOUNT_KEY".to_owned();
        return (Gs::ServiceAccountKey(key), words);
    }
    if let Some(path) = world.variable("GOOGLE_APPLICATION_CREDENTIALS") {
        let words = format!("GOOGLE_APPLICATION_CREDENTIALS, {path}");
        return (Gs::Default(path.into()), words);
    }
    if (world.file)(&default).is_some() {
        return (
            Gs::Default(default),
            "gcloud's application default credentials".to_owned(),
        );
    }
    let there = ["GCE_METADATA_HOST", "K_SERVICE", "KUBERNETES_SERVICE_HOST"];
    if there.iter().any(|name| world.is_set(name)) || world.machine_is("Google") {
        return (Gs::Instance, "the instance's service account".to_owned());
    }
    let words = "no credentials (no GOOGLE_APPLICATION_CREDENTIALS, no `gcloud auth application-default login`)";
    (Gs::Anonymous, words.to_owned())
}

fn gs(name: &str, world: &World<'_>) -> Result<Bucket, Refusal> {
    let (plan, credentials) = plan_gs(world);
    let endpoint = world.variable("STORAGE_EMULATOR_HOST").map(|host| {
        let url = if host.contains("://") {
            host
        } else {
            format!("http://{host}")
        };
        url.trim_end_matches('/').to_owned()
    });
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(name)
        .with_client_options(options(endpoint.as_deref()))
        .with_retry(once())
        .with_http_connector(connector());
    // The client takes another address from a service account's file alone.
    let address = endpoint.map(|url| {
        serde_json::json!({
            "private_key": "", "private_key_id": "", "client_email": "", "gcs_base_url": url, "disable_oauth": true
        })
        .to_string()
    });
    let token = |bearer: String| Arc::new(StaticCredentialProvider::new(GcpCredential { bearer }));
    if let Some(address) = &address {
        builder = builder.with_service_account_key(address);
    }
    builder = match plan {
        Gs::Token(bearer) => builder.with_credentials(token(bearer)),
        Gs::Anonymous => builder.with_skip_signature(true).with_credentials(token(String::new())),
        _ if address.is_some() => builder,
        Gs::ServiceAccount(path) => builder.with_service_account_path(path.to_string_lossy()),
        Gs::ServiceAccountKey(key) => builder.with_service_account_key(key),
        Gs::Default(path) => builder.with_application_credentials(path.to_string_lossy()),
        Gs::Instance => builder,
    };
    finish(builder.build().map(|store| Arc::new(store) as _), credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3_of(variables: &[(&str, &str)], files: &[(&str, &str)]) -> Result<S3Plan, Refusal> {
        let find = |found: &[(&str, &str)], name: &str| {
            let found = found.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        plan_s3(&World {
            variable: &|name| find(variables, name).or_else(|| (name == "HOME").then(|| "/home/u".to_owned())),
            file: &|path| find(files, path.to_str().unwrap()),
        })
    }

    const KEYS: (&str, &str) = (
        "/home/u/.aws/credentials",
        "[default]\naws_access_key_id=D\naws_secret_access_key=S\n[work]\naws_access_key_id=W\naws_secret_access_key=S\nregion=eu-north-1\n",
    );

    #[test]
    fn s3_credentials_are_taken_in_the_order_of_awss_tools() {
        let environment = [("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "S")];
        assert!(
            s3_of(&environment, &[KEYS])
                .unwrap()
                .credentials
                .contains("environment")
        );
        let plan = s3_of(&[], &[KEYS]).unwrap();
        assert_eq!(
            (plan.credentials.as_str(), plan.keys[0].1.as_str()),
            ("the AWS profile `default`", "D")
        );
        let plan = s3_of(&[("AWS_PROFILE", "work"), environment[0], environment[1]], &[KEYS]).unwrap();
        assert_eq!(
            (plan.keys[0].1.as_str(), plan.region.as_deref()),
            ("W", Some("eu-north-1"))
        );
        let plan = s3_of(&[], &[("/sys/class/dmi/id/sys_vendor", "Amazon EC2\n")]).unwrap();
        assert_eq!(
            (plan.credentials.as_str(), plan.anonymous),
            ("the instance's role", false)
        );
        let plan = s3_of(&[], &[]).unwrap();
        assert!(plan.anonymous && plan.credentials.starts_with("no credentials"));
        assert!(s3_of(&[("AWS_SKIP_SIGNATURE", "true")], &[KEYS]).unwrap().anonymous);
    }

    #[test]
    fn what_cannot_work_is_said_at_once() {
        let (what, hint) = s3_of(&[("AWS_PROFILE", "wrok")], &[KEYS]).unwrap_err();
        assert!(what.contains("`wrok`") && hint.contains("list-profiles"));
        assert!(s3_of(&[("AWS_ACCESS_KEY_ID", "E")], &[]).is_err());
    }

    #[test]
    fn profiles_without_keys_have_programs_that_print_some() {
        let sso = (
            "/home/u/.aws/config",
            "[profile p]\nsso_session = x\n[profile q]\ncredential_process = keys --now\n",
        );
        let program = |name| s3_of(&[("AWS_PROFILE", name)], &[sso]).unwrap().program.unwrap();
        assert_eq!(program("p"), "aws configure export-credentials --profile 'p'");
        assert_eq!(program("q"), "keys --now");
    }

    #[test]
    fn endpoints_come_from_the_environment_before_the_profile() {
        let profile = ("/home/u/.aws/config", "[default]\nendpoint_url = http://p\n");
        assert_eq!(s3_of(&[], &[profile]).unwrap().endpoint.as_deref(), Some("http://p"));
        let both = [("AWS_ENDPOINT_URL", "http://a"), ("AWS_ENDPOINT_URL_S3", "http://s")];
        assert_eq!(s3_of(&both, &[profile]).unwrap().endpoint.as_deref(), Some("http://s"));
    }

    #[test]
    fn googles_credentials_are_taken_in_the_order_of_its_libraries() {
        let of = |variables: &[(&str, &str)], files: &[&str]| {
            plan_gs(&World {
                variable: &|name| {
                    let found = variables.iter().find(|(key, _)| *key == name);
                    found
                        .map(|(_, value)| (*value).to_owned())
                        .or_else(|| (name == "HOME").then(|| "/h".to_owned()))
                },
                file: &|path| files.contains(&path.to_str().unwrap()).then(|| "Google".to_owned()),
            })
            .0
        };
        let file = "/h/.config/gcloud/application_default_credentials.json";
        assert_eq!(of(&[], &[file]), Gs::Default(file.into()));
        assert_eq!(
            of(&[("GOOGLE_APPLICATION_CREDENTIALS", "/k")], &[file]),
            Gs::Default("/k".into())
        );
        assert_eq!(
            of(&[("GOOGLE_SERVICE_ACCOUNT", "/s")], &[file]),
            Gs::ServiceAccount("/s".into())
        );
        assert_eq!(of(&[], &["/sys/class/dmi/id/product_name"]), Gs::Instance);
        assert_eq!(of(&[], &[]), Gs::Anonymous);
    }
}

//! Machine types of Cloud ML Engine, with the accelerators that each machine brings.
//!
//! Source: the service's documentation of `TrainingInput` and its list of machine types.

use std::fmt;

use super::suggest;

/// Whether a machine is named in the service's own vocabulary or Compute Engine's. A cluster may not mix the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// `standard_gpu`, `complex_model_l`, …
    Legacy,
    /// `n1-standard-8`, `a2-highgpu-1g`, …
    ComputeEngine,
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::ComputeEngine => "Compute Engine",
        })
    }
}

/// A documented machine type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineType {
    /// As written in cluster files.
    pub name: String,
    /// Which vocabulary the name is from.
    pub category: Category,
    /// Accelerators that the machine always has. Those attached by `acceleratorConfig` come on top.
    pub accelerators: u32,
    /// `acceleratorConfig.type` of those it always has.
    pub accelerator: Option<&'static str>,
}

/// The legacy machine types: name, number of accelerators, their type.
const LEGACY: [(&str, u32, Option<&str>); 15] = [
    ("standard", 0, None),
    ("large_model", 0, None),
    ("complex_model_s", 0, None),
    ("complex_model_m", 0, None),
    ("complex_model_l", 0, None),
    ("standard_gpu", 1, Some("NVIDIA_TESLA_K80")),
    ("complex_model_m_gpu", 4, Some("NVIDIA_TESLA_K80")),
    ("complex_model_l_gpu", 8, Some("NVIDIA_TESLA_K80")),
    ("standard_p100", 1, Some("NVIDIA_TESLA_P100")),
    ("complex_model_m_p100", 4, Some("NVIDIA_TESLA_P100")),
    ("standard_v100", 1, Some("NVIDIA_TESLA_V100")),
    ("large_model_v100", 1, Some("NVIDIA_TESLA_V100")),
    ("complex_model_m_v100", 4, Some("NVIDIA_TESLA_V100")),
    ("complex_model_l_v100", 8, Some("NVIDIA_TESLA_V100")),
    (CLOUD_TPU, 0, None),
];

/// The machine type that carries a TPU.
pub const CLOUD_TPU: &str = "cloud_tpu";

/// Compute Engine's families: prefix and the sizes that the service offers.
const FAMILIES: [(&str, &[u32]); 12] = [
    ("n1-standard-", &[4, 8, 16, 32, 64, 96]),
    ("n1-highmem-", &[2, 4, 8, 16, 32, 64, 96]),
    ("n1-highcpu-", &[16, 32, 64, 96]),
    ("e2-standard-", &[4, 8, 16, 32]),
    ("e2-highmem-", &[2, 4, 8, 16]),
    ("e2-highcpu-", &[16, 32]),
    ("n2-standard-", &[4, 8, 16, 32, 48, 64, 80]),
    ("n2-highmem-", &[2, 4, 8, 16, 32, 48, 64, 80]),
    ("n2-highcpu-", &[16, 32, 48, 64, 80]),
    ("c2-standard-", &[4, 8, 16, 30, 60]),
    ("m1-ultramem-", &[40, 80, 160]),
    ("m1-megamem-", &[96]),
];

/// Machines with A100s built in: name, number of accelerators.
const A2: [(&str, u32); 5] = [
    ("a2-highgpu-1g", 1),
    ("a2-highgpu-2g", 2),
    ("a2-highgpu-4g", 4),
    ("a2-highgpu-8g", 8),
    ("a2-megagpu-16g", 16),
];

const A100: &str = "NVIDIA_TESLA_A100";

/// `acceleratorConfig.type` with the counts that one machine may have.
const ACCELERATORS: [(&str, &[u32]); 6] = [
    ("NVIDIA_TESLA_K80", &[1, 2, 4, 8]),
    ("NVIDIA_TESLA_P4", &[1, 2, 4]),
    ("NVIDIA_TESLA_P100", &[1, 2, 4]),
    ("NVIDIA_TESLA_T4", &[1, 2, 4]),
    ("NVIDIA_TESLA_V100", &[1, 2, 4, 8]),
    (A100, &[1, 2, 4, 8, 16]),
];

/// Every machine type that the service documents.
pub fn all() -> Vec<MachineType> {
    let legacy = LEGACY.into_iter().map(|(name, accelerators, accelerator)| MachineType {
        name: name.to_owned(),
        category: Category::Legacy,
        accelerators,
        accelerator,
    });
    let engine = |name: String, accelerators, accelerator| MachineType {
        name,
        category: Category::ComputeEngine,
        accelerators,
        accelerator,
    };
    let plain = FAMILIES
        .into_iter()
        .flat_map(|(prefix, sizes)| sizes.iter().map(move |size| format!("{prefix}{size}")))
        .map(|name| engine(name, 0, None));
    let a2 = A2
        .into_iter()
        .map(|(name, count)| engine(name.to_owned(), count, Some(A100)));
    legacy.chain(plain).chain(a2).collect()
}

/// The machine type of this name; the error says what is wrong and, as a hint, what is near.
pub fn find(name: &str) -> Result<MachineType, Refusal> {
    let all = all();
    if let Some(machine) = all.iter().find(|machine| machine.name == name) {
        if name == CLOUD_TPU {
            return Err(Refusal::new(
                "machine type `cloud_tpu` is not supported: Coati trains on CPUs and NVIDIA GPUs",
                Some("use `standard_gpu`, or `standard` for a machine without accelerators".to_owned()),
            ));
        }
        return Ok(machine.clone());
    }
    let hint = if let Some((prefix, sizes)) = FAMILIES.into_iter().find(|(prefix, _)| name.starts_with(prefix)) {
        let sizes: Vec<String> = sizes.iter().map(|size| format!("{prefix}{size}")).collect();
        format!("this family has {}", sizes.join(", "))
    } else if let Some(near) = suggest::nearest(name, all.iter().map(|machine| machine.name.as_str())) {
        format!("did you mean `{near}`?")
    } else {
        let legacy: Vec<&str> = LEGACY
            .iter()
            .map(|entry| entry.0)
            .filter(|name| *name != CLOUD_TPU)
            .collect();
        format!(
            "known are {}, and Compute Engine's n1-, n2-, e2-, c2-, m1- and a2- machines",
            legacy.join(", ")
        )
    };
    Err(Refusal::new(format!("unknown machine type `{name}`"), Some(hint)))
}

/// Checks `acceleratorConfig` against the machine that carries it; returns the accelerators that the machine then has.
pub fn attach(machine: &MachineType, accelerator: &str, count: u32) -> Result<u32, Refusal> {
    if accelerator.starts_with("TPU_") {
        return Err(Refusal::new(
            format!("accelerator `{accelerator}` is not supported: Coati trains on CPUs and NVIDIA GPUs"),
            None,
        ));
    }
    let Some((_, counts)) = ACCELERATORS.into_iter().find(|(name, _)| *name == accelerator) else {
        let names = ACCELERATORS.map(|(name, _)| name);
        let hint = suggest::nearest(accelerator, names).map_or_else(
            || format!("known are {}", names.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        return Err(Refusal::new(
            format!("unknown accelerator type `{accelerator}`"),
            Some(hint),
        ));
    };
    if machine.category == Category::Legacy {
        return Err(Refusal::new(
            format!(
                "machine type `{}` takes no acceleratorConfig: legacy types have a fixed number of accelerators",
                machine.name
            ),
            Some(
                "use a type that includes them (`standard_gpu`, `complex_model_m_p100`, …) or an n1- machine"
                    .to_owned(),
            ),
        ));
    }
    if let Some(fixed) = machine.accelerator {
        return if fixed == accelerator && machine.accelerators == count {
            Ok(count)
        } else {
            Err(Refusal::new(
                format!(
                    "machine type `{}` always has {} {fixed}, not {count} {accelerator}",
                    machine.name, machine.accelerators
                ),
                None,
            ))
        };
    }
    if !machine.name.starts_with("n1-") {
        return Err(Refusal::new(
            format!("accelerators cannot be attached to machine type `{}`", machine.name),
            Some("use an n1- machine, or an a2- machine, which has A100s built in".to_owned()),
        ));
    }
    if accelerator == A100 {
        return Err(Refusal::new(
            format!("{A100} cannot be attached to machine type `{}`", machine.name),
            Some("use an a2-highgpu- machine".to_owned()),
        ));
    }
    if !counts.contains(&count) {
        let counts: Vec<String> = counts.iter().map(u32::to_string).collect();
        return Err(Refusal::new(
            format!("{count} {accelerator} cannot be attached to one machine"),
            Some(format!("possible are {}", counts.join(", "))),
        ));
    }
    Ok(count)
}

/// Why a machine, an accelerator or a scale tier is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What is wrong, with the value.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>, hint: Option<String>) -> Self {
        Self {
            message: message.into(),
            hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Category, all, attach, find};

    #[test]
    fn machines_bring_their_documented_accelerators() {
        for (name, count) in [
            ("standard", 0),
            ("large_model", 0),
            ("complex_model_s", 0),
            ("complex_model_m", 0),
            ("complex_model_l", 0),
            ("standard_gpu", 1),
            ("complex_model_m_gpu", 4),
            ("complex_model_l_gpu", 8),
            ("standard_p100", 1),
            ("complex_model_m_p100", 4),
            ("standard_v100", 1),
            ("large_model_v100", 1),
            ("complex_model_m_v100", 4),
            ("complex_model_l_v100", 8),
            ("n1-standard-4", 0),
            ("n1-highmem-2", 0),
            ("n1-highcpu-96", 0),
            ("e2-highcpu-32", 0),
            ("n2-standard-80", 0),
            ("c2-standard-60", 0),
            ("a2-highgpu-1g", 1),
            ("a2-highgpu-8g", 8),
            ("a2-megagpu-16g", 16),
        ] {
            assert_eq!(find(name).map(|machine| machine.accelerators), Ok(count), "{name}");
        }
        assert_eq!(all().len(), 15 + 56 + 5);
        assert_eq!(find("standard").unwrap().category, Category::Legacy);
        assert_eq!(find("n1-standard-4").unwrap().category, Category::ComputeEngine);
    }

    #[test]
    fn unknown_machines_are_refused_with_what_is_near() {
        let refusal = find("standart_gpu").unwrap_err();
        assert_eq!(refusal.message, "unknown machine type `standart_gpu`");
        assert_eq!(refusal.hint.as_deref(), Some("did you mean `standard_gpu`?"));
        assert_eq!(
            find("n1-highcpu-8").unwrap_err().hint.as_deref(),
            Some("this family has n1-highcpu-16, n1-highcpu-32, n1-highcpu-64, n1-highcpu-96")
        );
        assert!(find("cloud_tpu").unwrap_err().message.contains("not supported"));
        assert!(
            find("mainframe")
                .unwrap_err()
                .hint
                .unwrap()
                .starts_with("known are standard, large_model")
        );
    }

    #[test]
    fn accelerators_attach_where_the_service_allows_it() {
        let n1 = find("n1-standard-8").unwrap();
        assert_eq!(attach(&n1, "NVIDIA_TESLA_T4", 2), Ok(2));
        assert_eq!(
            attach(&n1, "NVIDIA_TESLA_T4", 3).unwrap_err().hint.as_deref(),
            Some("possible are 1, 2, 4")
        );
        assert_eq!(
            attach(&n1, "NVIDIA_TESLA_T5", 1).unwrap_err().hint.as_deref(),
            Some("did you mean `NVIDIA_TESLA_T4`?")
        );
        assert!(attach(&n1, "TPU_V2", 8).unwrap_err().message.contains("not supported"));
        assert!(attach(&n1, "NVIDIA_TESLA_A100", 1).is_err());
        assert!(attach(&find("e2-standard-4").unwrap(), "NVIDIA_TESLA_T4", 1).is_err());
        assert!(
            attach(&find("standard_gpu").unwrap(), "NVIDIA_TESLA_K80", 1)
                .unwrap_err()
                .message
                .contains("legacy")
        );
        let a2 = find("a2-highgpu-2g").unwrap();
        assert_eq!(attach(&a2, "NVIDIA_TESLA_A100", 2), Ok(2));
        assert!(attach(&a2, "NVIDIA_TESLA_A100", 4).is_err());
    }
}

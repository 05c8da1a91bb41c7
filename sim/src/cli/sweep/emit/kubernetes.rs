//! An Indexed Job for Kubernetes, the volume for its results, and a suspended Job that merges them.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMap, ConfigMapVolumeSource, Container, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec,
    PodTemplateSpec, ResourceRequirements, SeccompProfile, SecurityContext, Volume, VolumeMount,
    VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;

use super::Division;
use crate::cli::{CommonError, Exit};

/// Where the results are mounted.
const RESULTS: &str = "/results";
/// Where the scenario is mounted.
const SCENARIO: &str = "/scenario/scenario.toml";
/// At most so many shards run at the same time; edit the file for more.
const PARALLEL_MAX: u64 = 64;
/// A rollout that cannot be run fails in every attempt; anything else (a lost node) deserves others.
const ATTEMPTS: i32 = 5;

/// The objects, as YAML documents.
pub fn manifests(division: &Division<'_>, image: &str) -> Result<String, CommonError> {
    let name = &division.name;
    let mut out = format!(
        "# A sweep in {shards} shards: an Indexed Job, and a Job that merges, suspended until it is wanted. Kubernetes 1.33 or later.
#   kubectl apply -f THIS_FILE
#   kubectl wait --for=condition=complete --timeout=24h job/{name}
#   kubectl patch job/{name}-merge -p '{{\"spec\":{{\"suspend\":false}}}}'
#   kubectl logs --follow job/{name}-merge
# The merge names shards that are missing. Deleting the Job and applying it again runs just what is missing: results stay on
# the volume. The image is built from the Containerfile. All shards write to one volume: its class must allow
# ReadWriteMany, unless all run on one node.
",
        shards = division.shards
    );
    if let Some(text) = &division.prepared.recipe.scenario_text {
        out += &document(&ConfigMap {
            metadata: meta(name),
            data: Some([("scenario.toml".to_owned(), text.clone())].into()),
            immutable: Some(true),
            ..ConfigMap::default()
        })?;
    }
    out += &document(&claim(name))?;
    out += &document(&job(division, image))?;
    out += &document(&merge(division, image))?;
    Ok(out)
}

fn document(object: &impl Serialize) -> Result<String, CommonError> {
    let yaml = serde_saphyr::to_string(object)
        .map_err(|error| anyhow::anyhow!("cannot write YAML: {error}"))?;
    Ok(format!("---\n{}\n", yaml.trim_end()))
}

fn meta(name: &str) -> ObjectMeta {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(BTreeMap::from([
            label("app.kubernetes.io/name", "sim"),
            label("app.kubernetes.io/version", env!("CARGO_PKG_VERSION")),
        ])),
        ..ObjectMeta::default()
    }
}

fn claim(name: &str) -> PersistentVolumeClaim {
    let size = [("storage".to_owned(), Quantity("1Gi".to_owned()))];
    PersistentVolumeClaim {
        metadata: meta(name),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteMany".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(size.into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// The shards.
fn job(division: &Division<'_>, image: &str) -> Job {
    let scenario = division.prepared.recipe.scenario_text.is_some();
    let words = division.words(RESULTS, scenario.then_some(SCENARIO));
    let wrong_usage = PodFailurePolicyRule {
        action: "FailIndex".to_owned(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some("sim".to_owned()),
            operator: "In".to_owned(),
            values: vec![i32::from(Exit::INTERNAL), i32::from(Exit::USAGE)],
        }),
        ..PodFailurePolicyRule::default()
    };
    let count = |number: u64| i32::try_from(number).unwrap_or(i32::MAX);
    Job {
        metadata: meta(&division.name),
        spec: Some(JobSpec {
            completion_mode: Some("Indexed".to_owned()),
            completions: Some(count(division.shards)),
            parallelism: Some(count(division.shards.min(PARALLEL_MAX))),
            backoff_limit_per_index: Some(ATTEMPTS),
            max_failed_indexes: Some(count(division.shards)),
            pod_failure_policy: Some(PodFailurePolicy {
                rules: vec![wrong_usage],
            }),
            template: pod(division, image, &words),
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

/// The merge.
fn merge(division: &Division<'_>, image: &str) -> Job {
    let words = ["sim", "merge", RESULTS].map(str::to_owned);
    Job {
        metadata: meta(&format!("{}-merge", division.name)),
        spec: Some(JobSpec {
            suspend: Some(true),
            backoff_limit: Some(0),
            template: pod(division, image, &words),
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

/// A pod that may do nothing but compute and write results. The image's entry point is `sim` itself.
fn pod(division: &Division<'_>, image: &str, words: &[String]) -> PodTemplateSpec {
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    };
    let mut mounts = vec![mount("results", RESULTS)];
    let mut volumes = vec![Volume {
        name: "results".to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: division.name.clone(),
            read_only: None,
        }),
        ..Volume::default()
    }];
    if division.prepared.recipe.scenario_text.is_some() {
        let folder = SCENARIO.rsplit_once('/').map_or("", |(folder, _)| folder);
        mounts.push(mount("scenario", folder));
        volumes.push(Volume {
            name: "scenario".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: division.name.clone(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    let amount = |what: &str, amount: &str| (what.to_owned(), Quantity(amount.to_owned()));
    let container = Container {
        name: "sim".to_owned(),
        image: Some(image.to_owned()),
        args: Some(words[1..].to_vec()),
        volume_mounts: Some(mounts),
        resources: Some(ResourceRequirements {
            requests: Some([amount("cpu", "1"), amount("memory", "512Mi")].into()),
            limits: Some([amount("memory", "1Gi")].into()),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    let user = 65_532;
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            name: None,
            ..meta("")
        }),
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(60),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(user),
                run_as_group: Some(user),
                fs_group: Some(user),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![container],
            volumes: Some(volumes),
            ..PodSpec::default()
        }),
    }
}

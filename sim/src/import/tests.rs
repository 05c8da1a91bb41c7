//! Objects as clusters print them.

use super::*;
use crate::scenario::annotate;
use ipvs_model::conntrack::SourceNat;

const DEPLOYMENT: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
spec:
  replicas: 4
  minReadySeconds: 3
  strategy:
    type: RollingUpdate
    rollingUpdate: { maxSurge: 50%, maxUnavailable: 0 }
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web, tier: front } }
    spec:
      terminationGracePeriodSeconds: 45
      containers:
      - name: sidecar
        image: envoy:1
        ports: [{ containerPort: 15001 }]
      - name: nginx
        image: nginx:1.18
        ports: [{ name: http, containerPort: 8080 }]
        readinessProbe:
          httpGet: { path: /, port: 8080 }
          initialDelaySeconds: 5
          failureThreshold: 5
        lifecycle:
          preStop: { exec: { command: ["/bin/bash", "-c", "sleep 20"] } }
"#;

const SERVICE: &str = r#"kind: Service
metadata: { name: web, namespace: shop }
spec:
  type: NodePort
  clusterIP: 10.27.255.42
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  sessionAffinityConfig: { clientIP: { timeoutSeconds: 600 } }
  selector: { app: web }
  ports:
  - { name: main, port: 80, targetPort: http, nodePort: 31199 }
  - { name: other, port: 50091 }
"#;

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

fn take(text: &str, ask: &Ask) -> Result<(Imported, Diagnostics), Diagnostics> {
    import(vec![source("objects.yaml", text)], ask)
}

fn recorded(at: &str) -> Ask {
    Ask {
        address: Some(at.parse().unwrap()),
        ..Ask::default()
    }
}

#[test]
fn a_deployment_and_its_service_become_a_scenario() {
    let text = format!("{DEPLOYMENT}---\n{SERVICE}");
    let (found, warnings) = take(&text, &recorded("10.20.79.226:31199")).unwrap();
    assert!(warnings.is_empty(), "{warnings}");
    let Rollout::Deployment(rollout) = found.scenario.rollout else {
        panic!("{:?}", found.scenario.rollout);
    };
    let s = Span::from_secs;
    assert_eq!(
        (rollout.replicas, rollout.surge(), rollout.unavailable()),
        (4, 2, 0)
    );
    assert_eq!((rollout.min_ready, rollout.pre_stop), (s(3), s(20)));
    assert_eq!(rollout.termination_grace_period, s(45));
    let probe = rollout.readiness;
    assert_eq!(
        (probe.initial_delay, probe.period, probe.timeout),
        (s(5), s(10), s(1))
    );
    assert_eq!((probe.success_threshold, probe.failure_threshold), (1, 5));
    let service = found.scenario.service;
    assert_eq!(service.address.to_string(), "10.20.79.226:31199");
    assert_eq!(
        (service.target_port, service.session_affinity),
        (8080, Some(s(600)))
    );
    let (scenario, service) = (&found.scenario, &found.scenario.service);
    assert_eq!(
        (
            scenario.kube_proxy.masquerade,
            service.kind,
            service.traffic_policy
        ),
        (
            scenario::Masquerade::KubeProxy,
            scenario::ServiceKind::NodePort,
            scenario::TrafficPolicy::Local
        )
    );
    let text = annotate::to_toml(&found.scenario, &found.notes, &[]);
    let back = Scenario::parse(&text, "imported").unwrap_or_else(|e| panic!("{text}\n{e}"));
    assert_eq!(back.scenario, found.scenario, "{text}");
}

#[test]
fn json_lists_are_read_like_yaml() {
    let json = r#"{ "kind": "List", "items": [
        { "kind": "Deployment", "metadata": { "name": "a" }, "spec": { "replicas": 3, "template": {
            "metadata": { "labels": { "app": "a" } },
            "spec": { "containers": [ { "name": "c", "image": "i", "lifecycle": { "preStop": { "sleep": { "seconds": 7 } } } } ] } } } },
        { "kind": "Service", "metadata": { "name": "a" }, "spec": { "clusterIP": "10.96.0.7", "selector": { "app": "a" },
            "ports": [ { "port": 80, "targetPort": 8080 } ] } },
        { "kind": "EndpointSlice", "metadata": { "name": "a-x7", "labels": { "kubernetes.io/service-name": "a" } },
            "addressType": "IPv4", "endpoints": [
            { "addresses": ["10.1.0.9"], "conditions": { "ready": true }, "nodeName": "n1" },
            { "addresses": ["10.1.0.7"], "conditions": { "ready": null } },
            { "addresses": ["10.1.0.5"], "conditions": { "ready": false } } ] } ] }"#;
    let (found, _) = take(json, &Ask::default()).unwrap();
    assert_eq!(found.scenario.service.address.to_string(), "10.96.0.7:80");
    assert_eq!(found.scenario.server.old_address.to_string(), "10.1.0.7");
    let Rollout::Deployment(rollout) = found.scenario.rollout else {
        panic!("{:?}", found.scenario.rollout);
    };
    assert_eq!(
        (rollout.replicas, rollout.pre_stop),
        (3, Span::from_secs(7))
    );
    let open = found.open.join("\n");
    assert!(
        open.contains("2 pods are ready, the Deployment asks for 3"),
        "{open}"
    );
    assert!(open.contains("SIGTERM"), "{open}");
}

#[test]
fn what_is_missing_wrong_or_ambiguous_is_named_with_its_line() {
    let both = format!("{DEPLOYMENT}---\n{SERVICE}");
    let cases = [
        (
            both.clone(),
            Ask::default(),
            "say which with --port: main (80), other (50091)",
        ),
        (
            both.clone(),
            recorded("10.0.0.1:80"),
            "10.0.0.1:80 that was recorded",
        ),
        (
            SERVICE.to_owned(),
            Ask::default(),
            "no Deployment is among the objects",
        ),
        (
            DEPLOYMENT.replace("replicas: 4", "replicas: many"),
            Ask::default(),
            "objects.yaml:7:13",
        ),
        (
            DEPLOYMENT.replace("replicas: 4", "replicas: 0"),
            Ask::default(),
            "scaled to 0",
        ),
        (
            DEPLOYMENT.replace("maxSurge: 50%", "maxSurge: half"),
            Ask::default(),
            "maxSurge",
        ),
        (
            DEPLOYMENT.replace("type: RollingUpdate", "type: Recreate"),
            Ask::default(),
            "strategy Recreate is not modelled",
        ),
        (
            format!(
                "{DEPLOYMENT}---\n{}",
                DEPLOYMENT.replace("name: web", "name: web2")
            ),
            Ask::default(),
            "say which with --name",
        ),
        ("replicas: 3\n".to_owned(), Ask::default(), "has no `kind`"),
        (
            "kind: [\n".to_owned(),
            Ask::default(),
            "neither YAML nor JSON",
        ),
        (
            both.replace("clusterIP: 10.27.255.42", "clusterIP: None")
                .replace(", nodePort: 31199", ""),
            Ask {
                port: Some("main".to_owned()),
                ..Ask::default()
            },
            "headless",
        ),
    ];
    for (text, ask, words) in cases {
        let found = match take(&text, &ask) {
            Ok((found, warnings)) => panic!("{words}: {found:?} {warnings}"),
            Err(found) => found.to_string(),
        };
        assert!(found.contains(words), "{words}: {found}");
    }
}

#[test]
fn hooks_that_tell_no_time_are_open_questions() {
    let script = "nginx -s quit; while killall -0 nginx; do sleep 1; done";
    let text = format!("{}---\n{SERVICE}", DEPLOYMENT.replace("sleep 20", script));
    let (found, _) = take(&text, &recorded("10.20.79.226:31199")).unwrap();
    let open = found.open.join("\n");
    assert!(open.contains("nginx -s quit"), "{open}");
    // Which container serves is told by the Service's port only.
    let (found, _) = take(DEPLOYMENT, &Ask::default()).unwrap();
    let open = found.open.join("\n");
    assert!(open.contains("2 containers"), "{open}");
    let none = DEPLOYMENT.split("        lifecycle:").next().unwrap();
    let (found, _) = take(none, &Ask::default()).unwrap();
    let Rollout::Deployment(rollout) = found.scenario.rollout else {
        panic!("{:?}", found.scenario.rollout);
    };
    assert_eq!(rollout.pre_stop, Span::ZERO);
}

#[test]
fn node_ports_need_the_node_and_are_masqueraded_with_policy_cluster() {
    let text = format!("{DEPLOYMENT}---\n{}", SERVICE.replace("Local", "Cluster"));
    let ask = Ask {
        node: Some("10.20.79.226".parse().unwrap()),
        port: Some("31199".to_owned()),
        ..Ask::default()
    };
    let (found, _) = take(&text, &ask).unwrap();
    assert_eq!(
        found.scenario.service.address.to_string(),
        "10.20.79.226:31199"
    );
    let masquerade = |found: &Imported| {
        let (policy, _) = crate::engine::source_nat(&found.scenario);
        (found.scenario.service.kind, policy)
    };
    let ip = found.scenario.node.address;
    assert_eq!(
        masquerade(&found),
        (
            scenario::ServiceKind::NodePort,
            SourceNat::Masquerade { ip, random: true }
        )
    );
    let ask = Ask {
        port: Some("main".to_owned()),
        ..Ask::default()
    };
    let (found, _) = take(&text, &ask).unwrap();
    assert_eq!(
        found.scenario.service.address.to_string(),
        "10.27.255.42:80"
    );
    assert!(
        found.open.iter().any(|text| text.contains("--node")),
        "{:?}",
        found.open
    );
}

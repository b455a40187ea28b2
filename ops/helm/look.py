"""Looks at what the chart renders: look.py RENDERED.yaml SETTINGS.toml (written for the real program to read)."""
import pathlib
import sys
import tomllib

import yaml

SERVICES = ["api", "scheduler", "executor", "notifier", "auditor"]
# What each service holds; everything else of the keys is none of its business.
KEYS = {
    "api": {"master.key", "approval.nk", "agents-account.nk", "api.creds"},
    "scheduler": {"scheduler.creds"},
    "executor": {"master.key", "executor.nk", "executor.creds", "agents.creds"},
    "notifier": {"master.key", "notifier.creds"},
    "auditor": {"auditor.nk", "auditor.creds"},
}
documents = [d for d in yaml.safe_load_all(pathlib.Path(sys.argv[1]).read_text()) if d]
wrong = []


def check(good, text):
    if not good:
        wrong.append(text)


def of(kind):
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


names = [(d["kind"], d["metadata"]["name"]) for d in documents]
check(len(names) == len(set(names)), "a name is taken twice")
settings_text = of("ConfigMap")["w-settings"]["data"]["windlass.toml"]
pathlib.Path(sys.argv[2]).write_text(settings_text)
settings = tomllib.loads(settings_text)
ports = {s: int(a.rsplit(":", 1)[1]) for s, a in settings["health"].items()} | {"api": int(settings["api"]["listen"].rsplit(":", 1)[1])}
check(sorted(ports) == sorted(SERVICES) and len(set(ports.values())) == 5, f"ports: {ports}")

pods = {}
for kind in ("Deployment", "StatefulSet"):
    for name, d in of(kind).items():
        spec = d["spec"]
        labels = spec["template"]["metadata"]["labels"]
        check(spec["selector"]["matchLabels"].items() <= labels.items(), f"{name}: its selector is not that of its pods")
        pods[labels["app.kubernetes.io/component"]] = (spec, spec["template"]["spec"], labels)
check(sorted(pods) == sorted(SERVICES), f"workloads: {sorted(pods)}")
jobs = [d["spec"]["template"]["spec"] for d in of("Job").values()]
check(len(jobs) == 1 and of("Job")["w-migrate"]["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade", "the migration")

for service, (spec, pod, labels) in pods.items():
    main = pod["containers"][0]
    check(main["args"] == [service, "--config", "/etc/windlass/windlass.toml"], f"{service}: {main['args']}")
    check([p["containerPort"] for p in main["ports"]] == [ports[service]], f"{service}: its port is not that of its settings")
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        check(main[probe]["httpGet"] == {"path": path, "port": "http"}, f"{service}: {probe}")
    volumes = {v["name"]: v for v in pod["volumes"]} | {c["metadata"]["name"]: c for c in spec.get("volumeClaimTemplates", [])}
    for c in pod["containers"] + pod["initContainers"]:
        for m in c.get("volumeMounts", []):
            check(m["name"] in volumes, f"{service}: mounts {m['name']}, which is no volume")
    held = {i["key"] for i in volumes["keys"]["secret"]["items"]}
    check(held == KEYS[service], f"{service}: holds {sorted(held)}")
    check(volumes["keys"]["secret"]["secretName"] == "windlass-keys", f"{service}: the keys' Secret")
    database = volumes["database"]["secret"]
    check((database["secretName"], database["items"]) == ("windlass-database", [{"key": service, "path": "url"}]), f"{service}: its database")
    mounted = {m["mountPath"] for m in main["volumeMounts"]}
    check(settings["database"]["url_file"].rsplit("/", 1)[0] in mounted, f"{service}: database.url_file is not mounted")
    creds = next(e["value"] for e in main["env"] if e["name"] == "WINDLASS__NATS__SERVICES_CREDS")
    check(creds == f"{settings['state_dir']}/keys/{service}.creds", f"{service}: {creds}")
    if ca := settings["nats"].get("tls", {}).get("ca_file"):
        check(ca.rsplit("/", 1)[0] in mounted, f"{service}: nats.tls.ca_file is not mounted")
    check(pod["terminationGracePeriodSeconds"] > 30, f"{service}: is killed before it could hand over")
    check(pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].items() <= labels.items(), f"{service}: spread")
    budget = of("PodDisruptionBudget").get(f"w-{service}")
    check((budget is not None) == (spec["replicas"] > 1), f"{service}: {spec['replicas']} copies and a budget: {budget is not None}")
    if budget:
        check(budget["spec"]["selector"]["matchLabels"].items() <= labels.items(), f"{service}: its budget is for others")
    asked = of("Service")[f"w-{service}"]["spec"]
    check(asked["selector"].items() <= labels.items() and asked["ports"][0]["targetPort"] in ("http", ports[service])
          if service == "api" else asked["ports"][0]["port"] == ports[service], f"{service}: its Service")
    policy = of("NetworkPolicy")[f"w-{service}"]["spec"]
    check(policy["podSelector"]["matchLabels"].items() <= labels.items(), f"{service}: its network policy is for others")
    check(policy["policyTypes"] == ["Ingress", "Egress"] and policy["ingress"][0]["ports"] == [{"port": ports[service]}],
          f"{service}: its network policy")
    if service in ("scheduler", "auditor"):
        out = {p["port"] for rule in policy["egress"] for p in rule["ports"]}
        check(out == {53, 5432, 4222}, f"{service}: goes out to {out}")

for pod in [p for _, p, _ in pods.values()] + jobs:
    check(pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True, "a pod's rights")
    for c in pod["containers"] + pod.get("initContainers", []):
        rights = c["securityContext"]
        check(rights == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, f"{c['name']}: rights")
        check("memory" in c["resources"]["limits"] and "cpu" in c["resources"]["requests"], f"{c['name']}: resources")
        check(":latest" not in c["image"], f"{c['name']}: {c['image']}")
for w in wrong:
    print(f"wrong: {w}", file=sys.stderr)
sys.exit(1 if wrong else 0)

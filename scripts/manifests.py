"""Checks files against the schemas of the programs that read them. Run by `scripts/manifests`."""

import json, os, pathlib, shutil, subprocess, sys

import jsonschema
import kubernetes_validate
import yaml

ROOT, HOME = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
NODE = HOME / "node"
KUBERNETES = ROOT / "deploy/kubernetes"
VERSION = "1.32"
failed = []


def report(what, problems=None, missing=None):
    print(f"{'skip ' if missing else 'FAIL ' if problems else 'ok   '} {what}{f': {missing}' if missing else ''}")
    for problem in problems or ():
        print(f"      {problem}")
    if problems:
        failed.append(what)


def run(*command, **more):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)
    return [] if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines()[-20:]


def have(program):
    return shutil.which(program)


def strict(schema):
    """A schema that refuses members it does not name, as the API server does (`strict` field validation)."""
    if isinstance(schema, dict):
        schema = {name: strict(value) for name, value in schema.items()}
        open_ = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        if "properties" in schema and isinstance(schema["properties"], dict) and not open_:
            schema["additionalProperties"] = False
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None)
        return schema
    return [strict(one) for one in schema] if isinstance(schema, list) else schema


def problems_of(document, schema):
    found = jsonschema.Draft202012Validator(strict(schema)).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


def keda(document):
    """Problems by the compiled schemas of @kubernetes-models/keda; None where there is no such kind, or no npm."""
    module = NODE / f"node_modules/@kubernetes-models/keda/{document['apiVersion']}/{document['kind']}.js"
    if not module.exists():
        return None
    script = ("const [file,kind,value]=process.argv.slice(1);try{new (require(file)[kind])(JSON.parse(value)).validate()}"
              "catch(e){console.log(e.message);process.exit(1)}")
    return run("node", "-e", script, module, document["kind"], json.dumps(document))


def crds():
    """Schemas of kinds that Kubernetes itself has not, by apiVersion and kind."""
    schemas = {}
    given = os.environ.get("HOPLINE_CRDS")
    for file in sorted(pathlib.Path(given).glob("*.y*ml")) if given else ():
        for crd in yaml.safe_load_all(file.read_text()):
            if crd and crd.get("kind") == "CustomResourceDefinition":
                spec = crd["spec"]
                for version in spec["versions"]:
                    schema = version["schema"]["openAPIV3Schema"]
                    schema["properties"] |= {"metadata": {"type": "object"}, "apiVersion": {}, "kind": {}}
                    schemas[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return schemas


def kubernetes():
    known = crds()
    folders = [KUBERNETES, *sorted(one.parent for one in KUBERNETES.glob("*/kustomization.yaml"))]
    sources = []
    for folder in folders:
        if not have("kubectl"):
            report(f"kustomize {folder.relative_to(ROOT)}", missing="no kubectl")
            continue
        done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
        report(f"kustomize {folder.relative_to(ROOT)}", done.stderr.splitlines() if done.returncode else None)
        sources.append((f"{folder.relative_to(ROOT)} as kustomize writes it", done.stdout))
    sources += [(str(file.relative_to(ROOT)), file.read_text()) for file in sorted(KUBERNETES.rglob("*.yaml"))
                if file.name != "kustomization.yaml"]
    for name, text in sources:
        problems, skipped = [], []
        for document in yaml.safe_load_all(text):
            if not document:
                continue
            key = document["apiVersion"], document["kind"]
            title = f"{key[1]} {document['metadata']['name']}"
            if key in known:
                problems += [f"{title}: {one}" for one in problems_of(document, known[key])]
            elif "." in key[0].split("/")[0] and not key[0].split("/")[0].endswith(".k8s.io"):
                found = keda(document)
                if found is None:
                    skipped.append(f"no schema of {key[0]} {key[1]} (HOPLINE_CRDS has none)")
                problems += [f"{title}: {one}" for one in found or ()]
            else:
                try:
                    kubernetes_validate.validate(document, VERSION, strict=True)
                except kubernetes_validate.ValidationError as error:
                    problems.append(f"{title}: {'/'.join(map(str, error.path))}: {error.message[:200]}")
        if skipped and not problems:
            report(name, missing="; ".join(skipped))
        else:
            report(f"{name} (Kubernetes {VERSION})", problems)


def compose():
    schema = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"]
    report("docker-compose.yml against the schema of the Compose specification", run(sys.executable, *schema))
    env = dict(os.environ, **dict(line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines()
                                  if "=" in line and not line.startswith("#")))
    for words in (["docker", "compose"], ["docker-compose"]):
        if have(words[0]) and not run(*words, "version"):
            report("docker compose config", run(*words, "config", "--quiet", cwd=ROOT, env=env))
            break
    else:
        report("docker compose config", missing="no Docker Compose")


def prometheus():
    folder = ROOT / "config/prometheus"
    if not have("promtool"):
        return report("promtool", missing="no promtool (apt-get install prometheus)")
    report("promtool check rules", run("promtool", "check", "rules", folder / "alerts.yml"))
    report("promtool test rules", run("promtool", "test", "rules", folder / "alerts_test.yml"))
    copy = HOME / "prometheus.yml"
    copy.write_text((folder / "prometheus.yml").read_text().replace("/etc/prometheus/", f"{folder}/"))
    report("promtool check config", run("promtool", "check", "config", copy))


def grafana():
    """The dashboard as a value of Grafana's own type."""
    dashboard = ROOT / "config/grafana/hopline.json"
    if not (NODE / "node_modules/@grafana/schema").exists():
        return report("Grafana dashboard", missing="no npm")
    source = NODE / "dashboard.ts"
    value = json.loads(dashboard.read_text())
    # An enumeration's names are not its values to TypeScript, so they are made texts.
    source.write_text("import { Dashboard } from '@grafana/schema';\n"
                      "type Plain<T> = T extends string ? `${T}` : T extends number ? number : T extends object\n"
                      "  ? { [K in keyof T]: Plain<T[K]> } : T;\n"
                      f"export const dashboard: Plain<Dashboard> = {json.dumps(value)};\n")
    report("Grafana dashboard as a `Dashboard` of @grafana/schema", run(
        NODE / "node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--module", "esnext",
        "--moduleResolution", "bundler", "--target", "es2022", source, cwd=NODE))


def asyncapi():
    if not (NODE / "node_modules/@asyncapi/parser").exists():
        return report("docs/asyncapi.yaml", missing="no npm")
    # Hints too, but for the one that there is a newer version of the specification.
    script = ("const{Parser}=require('@asyncapi/parser');new Parser().parse(require('fs').readFileSync(process.argv[1],'utf8'))"
              ".then(r=>{const bad=r.diagnostics.filter(d=>d.code!=='asyncapi-latest-version');bad.forEach(d=>console.log(d.path.join('/'),d.message));"
              "process.exit(bad.length?1:0)})")
    report("docs/asyncapi.yaml by the AsyncAPI parser", run("node", "-e", script, ROOT / "docs/asyncapi.yaml", cwd=NODE))


def definitions():
    """What RabbitMQ's importer takes: known members, and names that exist."""
    one_of = {"type": "string", "minLength": 1}
    pattern = {"type": "string"}
    schema = {
        "type": "object", "additionalProperties": False, "required": ["users", "vhosts", "permissions"],
        "properties": {
            "users": {"type": "array", "items": {
                "type": "object", "additionalProperties": False, "required": ["name", "password_hash", "tags"],
                "properties": {"name": one_of, "password_hash": one_of, "hashing_algorithm": {"enum": [
                    "rabbit_password_hashing_sha256", "rabbit_password_hashing_sha512"]},
                    "tags": {"type": "array", "items": {"enum": ["administrator", "monitoring", "policymaker", "management"]}}}}},
            "vhosts": {"type": "array", "items": {"type": "object", "required": ["name"]}},
            "permissions": {"type": "array", "items": {
                "type": "object", "additionalProperties": False, "required": ["user", "vhost", "configure", "write", "read"],
                "properties": {"user": one_of, "vhost": one_of, "configure": pattern, "write": pattern, "read": pattern}}},
            "policies": {"type": "array", "items": {
                "type": "object", "additionalProperties": False,
                "required": ["name", "vhost", "pattern", "apply-to", "priority", "definition"],
                "properties": {"name": one_of, "vhost": one_of, "pattern": one_of, "priority": {"type": "integer"},
                               "apply-to": {"enum": ["queues", "exchanges", "all", "quorum_queues", "streams", "classic_queues"]},
                               "definition": {"type": "object"}}}}}}
    value = json.loads((ROOT / "config/definitions.json").read_text())
    problems = problems_of(value, schema)
    users, vhosts = {one["name"] for one in value["users"]}, {one["name"] for one in value["vhosts"]}
    problems += [f"permission of {one['user']}, who is no user" for one in value["permissions"] if one["user"] not in users]
    problems += [f"{one['name'] if 'name' in one else one['user']}: no vhost {one['vhost']}"
                 for one in value["permissions"] + value["policies"] if one["vhost"] not in vhosts]
    report("config/definitions.json (a schema of ours; that RabbitMQ imports it is tested by tests/it)", problems)


compose()
kubernetes()
prometheus()
grafana()
definitions()
asyncapi()
print(f"manifests: {'wrong: ' + ', '.join(failed) if failed else 'all that could be checked is well'}")
sys.exit(1 if failed else 0)

"""Asks every demo host for its version over HTTP and prints a table. Usage: table.py UP-JSON WANTED-VERSION

Exits 1 unless all of them answer with the wanted version; `host=version` after it says so of single hosts instead.
"""
import json
import sys
import urllib.error
import urllib.request

with open(sys.argv[1], encoding="utf-8") as f:
    agents = json.load(f)["agents"]
wanted = {a["host"]: sys.argv[2] for a in agents}
wanted.update(pair.split("=", 1) for pair in sys.argv[3:])
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(port, path):
    try:
        with direct.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as e:
        return e.code, ""
    except OSError as e:
        return 0, str(e)


wrong = 0
print(f"    {'HOST':<10} {'PORT':<6} {'VERSION':<28} HEALTH")
for a in sorted(agents, key=lambda a: a["port"]):
    _, version = ask(a["port"], "/version")
    health, _ = ask(a["port"], "/health")
    good = version == wanted[a["host"]]
    wrong += not good
    print(f"    {a['host']:<10} {a['port']:<6} {version:<28} {health or '-'}{'' if good else '   <- expected ' + wanted[a['host']]}")
sys.exit(1 if wrong else 0)

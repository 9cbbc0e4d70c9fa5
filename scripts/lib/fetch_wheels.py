"""Downloads wheels that pip's configured index offers, resuming broken downloads; prints their paths.

usage: fetch_wheels.py FOLDER REQUIREMENT...

pip resolves (so mirrors and proxies that the user set up are honoured) and tells address and SHA-256 of each wheel;
the bytes are fetched here, because pip starts a broken half-gigabyte from nothing.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

ATTEMPTS = 6
TIMEOUT_SECONDS = 60


def fail(message, hint):
    sys.exit(f"fetch_wheels: error: {message}\nhint: {hint}")


def resolve(requirements):
    """[(file name, url, sha256)] of the wheels for this machine, without their dependencies."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet",
               "--disable-pip-version-check", "--only-binary=:all:", "--report", "-"]
    if "externally-managed" in " ".join(os.listdir(os.path.dirname(os.__file__))).lower():
        command.append("--break-system-packages")  # dry run: nothing is installed
    done = subprocess.run(command + requirements, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"pip could not find {', '.join(requirements)}:\n{done.stderr.strip()}",
             "pip 22.2 or newer, CPython 3.10 to 3.14 on x86-64 Linux, and a reachable package index are needed")
    wheels = []
    for item in json.loads(done.stdout)["install"]:
        info = item["download_info"]
        url = info["url"]
        digest = info["archive_info"].get("hashes", {}).get("sha256") or info["archive_info"]["hash"].split("=", 1)[1]
        name = os.path.basename(urllib.parse.unquote(urllib.parse.urlparse(url).path))
        wheels.append((name, url, digest))
    return wheels


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def receive(url, partial, name):
    """Appends to `partial` what is missing of `url`."""
    have = os.path.getsize(partial) if os.path.exists(partial) else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        resumed = answer.status == 206
        total = int(answer.headers.get("Content-Length", 0)) + (have if resumed else 0)
        if have and resumed:
            print(f"fetch_wheels: resuming {name} at {have >> 20} MB", file=sys.stderr)
        done, shown = (have if resumed else 0), time.monotonic()
        with open(partial, "ab" if resumed else "wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
                done += len(block)
                if time.monotonic() - shown > 5:
                    shown = time.monotonic()
                    print(f"fetch_wheels: {name}: {done >> 20} of {total >> 20} MB", file=sys.stderr)
    if total and done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")


def fetch(folder, name, url, digest):
    path = os.path.join(folder, name)
    if os.path.exists(path) and sha256(path) == digest:
        return path
    partial = path + ".partial"
    for attempt in range(ATTEMPTS):
        try:
            receive(url, partial, name)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing is missing, or what is there is not a prefix of it: the digest tells
                pass
            elif error.code in (429, 500, 502, 503, 504):
                time.sleep(2**attempt)
                continue
            else:
                fail(f"{name}: the package index answered {error.code} {error.reason}", "check pip's index settings (`pip config list`)")
        except OSError as error:
            print(f"fetch_wheels: {name}: {error}; trying again", file=sys.stderr)
            time.sleep(2**attempt)
            continue
        if sha256(partial) == digest:
            os.replace(partial, path)
            return path
        print(f"fetch_wheels: {name}: checksum differs; starting over", file=sys.stderr)
        os.remove(partial)
    fail(f"{name} could not be fetched in {ATTEMPTS} attempts", "check the network and run this again: it resumes")


def main():
    folder, requirements = sys.argv[1], sys.argv[2:]
    for name, url, digest in resolve(requirements):
        print(fetch(folder, name, url, digest))


if __name__ == "__main__":
    main()

"""A stand-in of the Hugging Face Hub: the calls of its HTTP API that `huggingface_hub` makes for one model repository.

Like the Hub it keeps large files in LFS, hands them out by a redirect to other storage, and answers 401 for a private
repository without a token.
"""

import base64
import hashlib
import json

TOKEN = "hf_tests"


class HubServer:
    """The repository `acme/flowers`; `commits` has its files after each commit, by the commit's id."""

    def __init__(self):
        self.commits = {}
        self.lfs = {}
        self.visibility = None
        self.is_private = False
        self.storage = ""
        self.tampered = {}
        self.changed = {}

    @property
    def head(self):
        return list(self.commits)[-1]

    @property
    def files(self):
        return self.commits[self.head] if self.commits else {}

    def commit(self, files):
        identity = hashlib.sha1(f"{len(self.commits)}".encode(), usedforsecurity=False).hexdigest()
        self.commits[identity] = files
        return identity

    def __call__(self, request):
        if request.path in self.changed:
            return self.changed[request.path](request)
        if request.path.startswith("/lfs/"):
            return self.transfer(request)
        if self.is_private and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {}, b"{}"
        if request.path == "/api/repos/create":
            return self.create(json.loads(request.body), request.headers["host"])
        if request.path == "/api/validate-yaml":
            return answer({"warnings": [], "errors": []})
        if self.visibility is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if request.path == "/acme/flowers.git/info/lfs/objects/batch":
            return self.batch(request)
        if request.path.startswith("/acme/flowers/resolve/"):
            return self.resolve(*request.path.split("/")[4:6])
        return self.repository(request, request.path.removeprefix("/api/models/acme/flowers"))

    def repository(self, request, path):
        if path == "/preupload/main":
            return self.choose_uploads(json.loads(request.body)["files"])
        if path == "/commit/main":
            return self.take_commit(request.body, request.headers["host"])
        revision = path.removeprefix("/revision/") if path.startswith("/revision/") else "main"
        commit = self.head if revision == "main" else revision
        return self.show(commit) if commit in self.commits else (404, {"X-Error-Code": "RevisionNotFound"}, b"{}")

    def create(self, fields, host):
        found = {"url": f"http://{host}/acme/flowers", "name": "acme/flowers"}
        if self.visibility is not None:
            return 409, {}, json.dumps(found).encode()
        assert (fields["organization"], fields["name"]) == ("acme", "flowers")
        self.visibility = fields.get("visibility") or ("private" if fields.get("private") else "public")
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return answer(found)

    def show(self, commit):
        siblings = []
        for name, data in self.commits[commit].items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            facts = {"rfilename": name, "size": len(data), "blobId": blob}
            if name.endswith(".safetensors"):
                facts["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
            siblings.append(facts)
        return answer({"id": "acme/flowers", "sha": commit, "siblings": siblings})

    def choose_uploads(self, files):
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        return answer({"files": modes})

    def batch(self, request):
        host = request.headers["host"]
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"http://{host}/lfs/{one['oid']}", "header": {}}},
            }
            for one in json.loads(request.body)["objects"]
        ]
        return answer({"objects": objects, "transfer": "basic"})

    def transfer(self, request):
        name = request.path.removeprefix("/lfs/")
        if request.method == "PUT":
            self.lfs[name] = request.body
            return 200, {}, b""
        return 200, {}, self.tampered.get(name, self.lfs[name])

    def take_commit(self, body, host):
        files = dict(self.files)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.lfs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.commit(files)
        return answer({"commitUrl": f"http://{host}/acme/flowers/commit/{commit}", "commitOid": commit})

    def resolve(self, commit, name):
        data = self.commits[commit][name]
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            self.lfs[digest] = data
            return 302, {"Location": f"{self.storage}/lfs/{digest}"}, b""
        return 200, {}, self.tampered.get(name, data)


def answer(fields):
    return 200, {"Content-Type": "application/json"}, json.dumps(fields).encode()

"Debian's Chromium without a window, driven over its DevTools protocol: what the browser tests share"
import base64, json, shutil, subprocess, time
from itertools import count
from urllib.request import Request, urlopen

import websocket
from copies import ENV, HANG, ROOT, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --remote-debugging-port=0 --remote-allow-origins=*".split()
SHOTS = ROOT/".cache"/"screenshots"  # for a look by eye; nothing compares them

class Browser:
    "One page of Chromium, driven over its DevTools protocol"

    def __init__(self, profile):
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        place = profile/"DevToolsActivePort"
        wait_for(lambda: place.exists() and place.read_text(encoding="utf-8").count("\n"), self.process)
        port = place.read_text(encoding="utf-8").split()[0]
        with urlopen(Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")) as answer: url = json.load(answer)["webSocketDebuggerUrl"]
        self.socket, self.numbers = websocket.create_connection(url, timeout=300), count(1)
        self.faults, self.requests = [], []  # errors of the console and exceptions; addresses that were asked for
        for domain in ("Page", "Runtime", "Log", "Network"): self.do(f"{domain}.enable")

    def receive(self) -> dict:
        "The next message; what the page complains of and asks for is kept"
        message = json.loads(self.socket.recv())
        kind, params = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown": self.faults.append(json.dumps(params["exceptionDetails"])[:600])
        elif kind == "Log.entryAdded" and params["entry"]["level"] == "error": self.faults.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif kind == "Runtime.consoleAPICalled" and params["type"] == "error": self.faults.append(json.dumps(params["args"])[:600])
        elif kind == "Page.javascriptDialogOpening":  # a page that is left with something unsaved
            self.socket.send(json.dumps(dict(id=next(self.numbers), method="Page.handleJavaScriptDialog", params=dict(accept=True))))
        elif kind == "Network.requestWillBeSent": self.requests.append(params["request"]["url"])
        return message

    def do(self, method: str, **params) -> dict:
        "Send a command; what it answers"
        number = next(self.numbers)
        self.socket.send(json.dumps(dict(id=number, method=method, params=params)))
        while (message := self.receive()).get("id") != number: pass
        assert "error" not in message, message
        return message["result"]

    def resize(self, width: int, theme: str):
        "Give the window a width and a theme"
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self.do("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value=theme)])

    def open(self, url: str, width: int, theme: str):
        "Show a page in a window of this width, in this theme"
        self.resize(width, theme)
        self.do("Page.bringToFront")  # a page behind another one is not painted, and waits
        if "loaderId" not in self.do("Page.navigate", url=url): return  # another place on the same page: nothing is loaded
        while self.receive().get("method") != "Page.loadEventFired": pass

    def evaluate(self, code: str):
        "Value of a JavaScript expression on the page; of a promise, what it becomes"
        return self.do("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)["result"].get("value")

    def wait(self, code: str):
        "Wait until an expression is true, and give its value"
        end = time.monotonic() + HANG
        while not (found := self.evaluate(code)):
            assert time.monotonic() < end, f"{code} never became true; {self.faults}"
            time.sleep(.3)
        return found

    def screenshot(self, path):
        "The whole page as PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def close(self):
        self.socket.close(); self.process.terminate(); self.process.wait()

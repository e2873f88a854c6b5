// A page that is opened from a file may start no worker, and the search needs one: a hidden frame
// with the worker's script takes its place.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script>addEventListener("load", () => parent.document.dispatchEvent(
        new CustomEvent("worker-ready", {detail: window})))</script><script src="${url}"></script>`;
      document.addEventListener("worker-ready", ({ detail: scope }) => {
        scope.postMessage = (data) => this.reply(data);
        this.scope = scope;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      });
      document.documentElement.append(this.frame);
    }
    postMessage(data) {
      if (!this.scope) this.waiting.push(data);
      else this.scope.dispatchEvent(new MessageEvent("message", { data }));
    }
    reply(data) {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }
    terminate() {
      this.frame.remove();
    }
  };

// Browsers start no Worker in a page that was opened from a folder. There the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const source = new URL(url, location.href).href;
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true, srcdoc: "<!doctype html><title>search</title>" });
      const load = (address) =>
        new Promise((resolve, reject) => {
          const page = this.frame.contentDocument;
          page.head.append(Object.assign(page.createElement("script"), { src: address, onload: resolve, onerror: reject }));
        });
      this.ready = new Promise((resolve) => {
        this.frame.onload = resolve;
      }).then(() => {
        const inside = this.frame.contentWindow;
        inside.IFrameWorker = this.constructor;
        inside.importScripts = (...addresses) => addresses.reduce((before, each) => before.then(() => load(each)), Promise.resolve());
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        return load(source);
      });
      document.documentElement.append(this.frame);
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}

import { startShell } from "./shell.js";

startShell({ events: false });

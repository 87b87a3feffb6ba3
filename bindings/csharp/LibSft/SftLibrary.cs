namespace LibSft
{
    /// <summary>The native library itself. All of it may be used from any thread at any time.</summary>
    public static class SftLibrary
    {
        /// <summary>The binary interface that this assembly was written for.</summary>
        public const int ExpectedAbiVersion = 1;

        /// <summary>The version of the library that this assembly belongs to.</summary>
        public const string ExpectedVersion = "0.1.0";

        private static bool compatible;

        /// <summary>
        /// The binary interface of the library that is running. Every object of this assembly refuses one that is not
        /// <see cref="ExpectedAbiVersion"/> by an <see cref="SftVersionException"/>.
        /// </summary>
        public static int AbiVersion
        {
            get { return (int)Native.sft_abi_version(); }
        }

        /// <summary>The version of the library that is running, such as "0.1.0".</summary>
        public static string Version
        {
            get { return Utf8.Text(Native.sft_version()); }
        }

        /// <summary>
        /// How the library was built, as a JSON object: "version", "abi_version", "arch", "os", "debug" (whether it was built
        /// without optimisation) and "devices", the kinds that this build can use. Later versions may add keys.
        /// </summary>
        public static string BuildInfo
        {
            get { return Utf8.Text(Native.sft_build_info()); }
        }

        /// <summary>
        /// How many callbacks configurations and sessions hold now. It falls to zero once all of them are disposed: a test for
        /// what a host forgot to dispose.
        /// </summary>
        public static int LiveCallbacks
        {
            get { return Callbacks.Live; }
        }

        /// <summary>The name of a status in C and in the documentation, such as "SFT_ERR_CONFIG".</summary>
        /// <param name="status">Any number.</param>
        /// <returns>The name; "unknown" for a number that the library does not know.</returns>
        public static string StatusName(SftStatus status)
        {
            return Utf8.Text(Native.sft_status_name((int)status));
        }

        /// <summary>The name of a stop reason as logs print it, such as "target_reached".</summary>
        /// <param name="reason">Any number.</param>
        /// <returns>The name; "none" while a run goes on, "unknown" for a number that the library does not know.</returns>
        public static string StopReasonName(StopReason reason)
        {
            return Utf8.Text(Native.sft_stop_reason_name((int)reason));
        }

        /// <summary>
        /// Throws if the library that is running is not one that this assembly can use. Every configuration does so when it is
        /// made.
        /// </summary>
        /// <exception cref="SftVersionException">The library has another binary interface.</exception>
        /// <exception cref="System.DllNotFoundException">There is no native library where the runtime looks for it.</exception>
        public static void EnsureCompatible()
        {
            if (compatible) return;
            int found = AbiVersion;
            if (found != ExpectedAbiVersion)
            {
                throw new SftVersionException(string.Format(
                    "the native library libsft is version {0} with the binary interface {1}; this LibSft was written for version "
                    + "{2} with the binary interface {3}: use the LibSft package and the libsft of the same release",
                    Version, found, ExpectedVersion, ExpectedAbiVersion));
            }
            compatible = true;
        }
    }
}
